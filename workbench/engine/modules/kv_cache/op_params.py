"""The parameters of ``QuantCalibrationOp``, checked as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from workbench.engine.errors import WrongState, WrongType, WrongValue
from workbench.engine.files.kv_config import PER_CHANNEL, PER_TENSOR, KVParams

WHERE = "QuantCalibrationOp() quant_algo_params"


class OpParamsError(WrongState, WrongValue):
    """A parameter that is unknown or out of range: ``RuntimeError`` as in the reference."""


class OpParamsTypeError(WrongType):
    """A parameter of the wrong type."""


class OpParamsTypeAndValueError(OpParamsTypeError, OpParamsError):
    """Parameters of both kinds."""


@dataclass(frozen=True)
class _Rule:
    types: tuple[type, ...]
    allowed: str
    fits: Callable[[Any], bool] = lambda _value: True
    algorithm: str = ""


_GRANULARITIES = {
    "per_tensor": PER_TENSOR, "0": PER_TENSOR, 0: PER_TENSOR,
    "per_channel": PER_CHANNEL, "1": PER_CHANNEL, 1: PER_CHANNEL,
}  # fmt: skip
_PERCENTILE = _Rule((float,), "a float in [0.5, 1]", lambda v: 0.5 <= v <= 1, "ifmr")
_BINS = (1024, 2048, 4096, 8192)

_RULES: Mapping[str, _Rule] = {
    "act_algo": _Rule((str,), "'ifmr', 'hfmg'", lambda v: v in ("ifmr", "hfmg")),
    "batch_num": _Rule((int,), "a whole number above 0", lambda v: v > 0),
    "asymmetric": _Rule((bool,), "True, False"),
    "with_offset": _Rule((bool,), "True, False"),
    "num_bits": _Rule((int,), "8", lambda v: v == 8),
    "quant_granularity": _Rule(
        (str, int), "'per_tensor', 'per_channel', 0, 1", lambda v: v in _GRANULARITIES
    ),
    "max_percentile": _PERCENTILE,
    "min_percentile": _PERCENTILE,
    "search_range": _Rule(
        (list, tuple), "[start, end] with 0 < start < end", lambda v: _is_range(v), "ifmr"
    ),
    "search_step": _Rule((float,), "a float above 0", lambda v: 0 < v < float("inf"), "ifmr"),
    "num_of_bins": _Rule((int,), ", ".join(map(str, _BINS)), lambda v: v in _BINS, "hfmg"),
}


def op_params(given: Mapping[str, Any] | None) -> tuple[KVParams, int]:
    """The parameters with their defaults, and ``batch_num``.

    ``asymmetric`` wins over ``with_offset``; both default to True. Raises one error with all that
    is wrong: ``TypeError`` for wrong types, ``RuntimeError`` for the rest. Chapter 25 section 17.
    """
    params = dict(given or {})
    algorithm = params.get("act_algo", "ifmr")
    types, values = [], []
    for key, value in params.items():
        rule = _RULES.get(key)
        if rule is None:
            values.append(f"{key!r} is unknown; allowed: {', '.join(_RULES)}")
        elif not isinstance(value, rule.types) or (
            isinstance(value, bool) and bool not in rule.types
        ):
            types.append(f"{key} is {value!r} ({type(value).__name__}); allowed: {rule.allowed}")
        elif not rule.fits(value):
            values.append(f"{key} is {value!r}; allowed: {rule.allowed}")
        elif rule.algorithm not in ("", algorithm):
            values.append(f"{key} is given; allowed: only with act_algo {rule.algorithm!r}")
    problems = types + values
    if problems:
        text = problems[0] if len(problems) == 1 else "\n- ".join(["", *problems])
        both = OpParamsTypeAndValueError if types and values else None
        raise (both or (OpParamsTypeError if types else OpParamsError))(text, where=WHERE)
    batch_num = params.pop("batch_num", 1)
    asymmetric = params.pop("with_offset", True)
    params.pop("num_bits", None)
    params["asymmetric"] = params.get("asymmetric", asymmetric)
    params["quant_granularity"] = _GRANULARITIES[params.get("quant_granularity", PER_TENSOR)]
    if "search_range" in params:
        start, end = params["search_range"]
        params["search_range"] = (float(start), float(end))
    return KVParams(**params), batch_num


def _is_range(value: Any) -> bool:
    numbers = [v for v in value if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(value) == len(numbers) == 2 and 0 < value[0] < value[1] < float("inf")
