"""A module to put anywhere into a forward: it watches what passes through it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from workbench.engine.errors import WrongState, WrongType, WrongValue
from workbench.engine.files.atomic import ensure_writable
from workbench.engine.files.record_merge import RecordMerger
from workbench.engine.modules.kv_cache.observation import Observation
from workbench.engine.modules.kv_cache.op_params import op_params

_METHOD = "kv_cache_quant"


class QuantCalibrationOp(nn.Module):
    """``y = op(layer_name, x)`` returns x itself and calibrates INT8 factors for that name.

    One op serves any number of names, each with a counter and an observer of its own: the first
    ``batch_num`` calls of a name are observed, its factors are then merged into ``record_file``,
    and later calls pass through. Other ops and processes may write to the same file. ``reset=True``
    empties the file first. ``memory_budget_mb``: what IFMR may keep of each name's values.

    ``quant_algo_params``: act_algo, batch_num, asymmetric, quant_granularity, and those of the
    algorithm. Errors: ``TypeError`` and ``RuntimeError`` for wrong arguments; ``CalibrationError``
    (``RuntimeError``) for data without INT8 factors. Chapter 25 section 17.
    """

    def __init__(
        self,
        record_file: str,
        quant_algo_params: dict[str, Any] | None = None,
        quant_method: str = _METHOD,
        *,
        reset: bool = False,
        memory_budget_mb: int = 16,
    ) -> None:
        super().__init__()
        if not isinstance(record_file, str):
            raise WrongType(
                f"record_file must be str, it is {type(record_file).__name__}",
                where="QuantCalibrationOp()",
            )
        if quant_algo_params is not None and not isinstance(quant_algo_params, dict):
            raise WrongType(
                f"quant_algo_params must be dict or None, it is {type(quant_algo_params).__name__}",
                where="QuantCalibrationOp()",
            )
        if quant_method != _METHOD:
            raise WrongState(
                f"quant_method is {quant_method!r}; allowed: {_METHOD!r}",
                where="QuantCalibrationOp()",
            )
        if not record_file:
            raise WrongValue("record_file is ''; it must name a file", where="QuantCalibrationOp()")
        ensure_writable(record_file)
        self._params, self._batch_num = op_params(quant_algo_params)
        self._byte_budget = memory_budget_mb << 20
        self._recorder = RecordMerger(record_file)
        self.observations = nn.ModuleDict()
        if reset:
            self._recorder.reset()

    def forward(self, layer_name: str, x: Tensor) -> Tensor:
        if not isinstance(layer_name, str):
            raise WrongType(
                f"the layer's name must be str, it is {type(layer_name).__name__}",
                where="QuantCalibrationOp",
            )
        found = self._observation(layer_name).watch(x)
        if found is not None:
            self._recorder.add({layer_name: found})
        return x

    def _observation(self, name: str) -> Observation:
        key = _key(name)
        if key not in self.observations:
            self.observations[key] = Observation(
                name,
                self._params,
                self._params.asymmetric is not False,
                self._batch_num,
                self._byte_budget,
            )
        observation = self.observations[key]
        assert isinstance(observation, Observation)
        return observation

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Names are known only when they are called; a checkpoint knows those that were.
        start = f"{prefix}observations."
        for key in state_dict:
            if key.startswith(start):
                self._observation(_name(key.removeprefix(start).partition(".")[0]))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _key(name: str) -> str:
    """A module dict takes no dots, and no name of a method of its own."""
    return "of:" + name.replace("%", "%25").replace(".", "%2E")


def _name(key: str) -> str:
    return key.removeprefix("of:").replace("%2E", ".").replace("%25", "%")
