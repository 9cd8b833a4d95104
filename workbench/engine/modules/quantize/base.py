"""What all calibration modules share: factors as buffers, counted calls, savable statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from workbench.engine.algorithms.scale_rule import Factors
from workbench.engine.algorithms.weight_formats import WeightFormat
from workbench.engine.errors import WorkbenchError, WrongState
from workbench.engine.modules.quantize.activations import ActivationFormat

_FACTORS = ("scale_w", "scale_d", "offset_w", "offset_d", "scale")


class BaseQuantizeModule(nn.Module):
    """Base of modules that stand in a layer's place while it is calibrated.

    ``quant_config`` is the layer's own: ``batch_num``, ``weights_cfg``, ``inputs_cfg``,
    ``kvcache_cfg``, ``algorithm`` (chapter 25 section 2). ``scale_w``/``offset_w`` (weight),
    ``scale_d``/``offset_d`` (activation) and ``scale`` (equalisation) are None until they are
    found; tensors put there are buffers. A module saved by ``state_dict`` before its calibration
    is done goes on from there when it is loaded.
    """

    scale_w: Tensor | None
    scale_d: Tensor | None
    offset_w: Tensor | None
    offset_d: Tensor | None
    scale: Tensor | None
    workbench_wrapper = True  # no model to start a flow from

    def __init__(
        self, ori_module: nn.Module, layer_name: str, quant_config: dict[str, Any]
    ) -> None:
        super().__init__()
        self.layer_name = layer_name
        self.quant_config = quant_config
        self.batch_num = int(quant_config.get("batch_num", 1))
        self.cur_batch = 0
        self.ori_module_type: str | None = None
        self.act_type: str | None = None
        self.wts_type: str | None = None
        self.group_size: int | None = None
        self.clip_max: Any = None
        self.scale_dtype: torch.dtype | None = None
        for name in _FACTORS:
            self.register_buffer(name, None)

    def calls_missing(self) -> int:
        """Forward calls that must still be seen before ``convert``; 0 when it may come."""
        return 0

    def statistics(self) -> dict[str, Any]:
        """Accumulators by name; their tensors and counts are saved and moved with the module."""
        return {}

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FACTORS and not isinstance(value, Tensor | None):
            # Modules of users may keep plain numbers there.
            self.__dict__.get("_buffers", {}).pop(name, None)
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BaseQuantizeModule:
        apply: Callable[..., object] = super()._apply
        apply(fn, recurse)
        for owner, key, value in self._fields():
            if isinstance(value, Tensor):
                setattr(owner, key, value.to(fn(value.new_empty(0)).device))
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}cur_batch"] = torch.tensor(self.cur_batch)
        for name, accumulator in self.statistics().items():
            for key, value in _state(accumulator).items():
                if value is not None:
                    destination[f"{prefix}{name}.{key}"] = torch.as_tensor(value)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        here = next((t.device for t in (*self.parameters(), *self.buffers())), None)
        own: list[str] = []
        if (calls := state_dict.get(f"{prefix}cur_batch")) is not None:
            self.cur_batch = int(calls)
            own.append(f"{prefix}cur_batch")
            # What was found by then, and nothing else, is what this module knows.
            for name in self._buffers:
                saved = state_dict.get(prefix + name)
                self._buffers[name] = (
                    None if saved is None else torch.empty_like(saved, device=here)
                )
            for name, accumulator in self.statistics().items():
                for key, value in _state(accumulator).items():
                    path = f"{prefix}{name}.{key}"
                    saved = state_dict.get(path)
                    if saved is None:
                        setattr(accumulator, key, None if isinstance(value, Tensor) else value)
                        continue
                    own.append(path)
                    plain = isinstance(value, int)
                    setattr(accumulator, key, int(saved) if plain else saved.to(here, copy=True))
        kept = {key: value for key, value in state_dict.items() if key not in own}
        super()._load_from_state_dict(
            kept, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _fields(self) -> Iterator[tuple[Any, str, Any]]:
        for accumulator in self.statistics().values():
            for key, value in _state(accumulator).items():
                yield accumulator, key, value


class CalibrationModule(BaseQuantizeModule):
    """Base of the built-in algorithms: float answers while observing, then fake-quantised ones.

    Subclasses observe the inputs of the first ``batch_num`` calls and find their factors in
    ``finish``. ``answers_at_once``: the last of those calls gives the quantised answer already.
    """

    answers_at_once = False

    def __init__(
        self, ori_module: nn.Module, layer_name: str, quant_config: dict[str, Any]
    ) -> None:
        super().__init__(ori_module, layer_name, quant_config)
        self.ori_module_type = type(ori_module).__name__
        self.weight = cast(nn.Parameter, ori_module.weight)
        self.bias = cast(nn.Parameter | None, ori_module.bias)
        weights = quant_config["weights_cfg"]
        self.weight_format = WeightFormat(
            weights["quant_type"],
            weights["symmetric"],
            weights["strategy"],
            weights.get("group_size"),
        )
        self.wts_type = self.weight_format.type
        self.group_size = self.weight_format.group_size
        self.inputs = ActivationFormat.of(quant_config["inputs_cfg"])
        self.act_type = self.inputs.type if self.inputs else None

    @property
    def needs_calls(self) -> bool:
        """Whether factors depend on inputs; without, the first answer is quantised already."""
        return True

    @property
    def dynamic(self) -> bool:
        """Whether activations are scaled at run time by the configuration's word."""
        return bool(self.inputs and self.inputs.dynamic)

    @property
    def weight_factors(self) -> Factors:
        """Factors of the weight that is quantised."""
        assert self.scale_w is not None
        return Factors(self.scale_w, self.offset_w)

    def observe(self, x: Tensor) -> None:
        """Take in one input."""
        raise NotImplementedError

    def finish(self) -> None:
        """Find the factors; called once, after the last observed input."""
        raise NotImplementedError

    def float_forward(self, x: Tensor) -> Tensor:
        """What the original layer answers."""
        return nn.functional.linear(x, self.weight, self.bias)

    def fake_forward(self, x: Tensor) -> Tensor:
        """What the layer answers with its factors."""
        raise NotImplementedError

    def calls_missing(self) -> int:
        return max(0, self.batch_num - self.cur_batch) if self.needs_calls else 0

    def forward(self, x: Tensor) -> Tensor:
        self.check_rank(x)
        if not self.needs_calls or self.cur_batch >= self.batch_num:
            return self.fake_forward(x)
        # An expert that no token was sent to has seen nothing.
        if x.numel():
            with torch.no_grad(), named(self.layer_name):
                self.observe(x)
                if self.cur_batch + 1 == self.batch_num:
                    self.finish()
            self.cur_batch += 1
            if self.answers_at_once and self.cur_batch == self.batch_num:
                return self.fake_forward(x)
        return self.float_forward(x)

    def check_rank(self, x: Tensor) -> None:
        """``RuntimeError`` unless the input has 2 to 6 axes."""
        if not 2 <= x.dim() <= 6:
            raise WrongState(
                f"an input has shape {list(x.shape)}; allowed: 2 to 6 axes", where=self.layer_name
            )

    def extra_repr(self) -> str:
        inputs = f"inputs={self.inputs.type}, " if self.inputs else ""
        rows, columns = self.weight.shape[0], self.weight[0].numel()
        return (
            f"[{rows}, {columns}], {inputs}weights={self.weight_format.type} "
            f"per {self.weight_format.strategy}, calls={self.cur_batch}/{self.batch_num}"
        )


@contextlib.contextmanager
def named(layer: str) -> Iterator[None]:
    """Puts the layer's name into the engine's errors."""
    try:
        yield
    except WorkbenchError as error:
        if error.where:
            raise
        raise type(error)(error.message, where=f"layer {layer}", hint=error.hint) from error


def _state(accumulator: Any) -> dict[str, Any]:
    """Tensors and counts of an accumulator, those that are not there yet as None."""
    return {
        key: value
        for key, value in vars(accumulator).items()
        if isinstance(value, Tensor | int | None) and not isinstance(value, bool)
    }
