"""The columns of the Layers table, which of them can be edited, and to what."""

from __future__ import annotations

from typing import Any

from workbench.engine.errors import WrongType, WrongValue
from workbench.engine.graph.layers import LayerInfo

FLAGS = ("quant_enable", "retrain_enable")
"""Boolean columns that a click toggles."""

OPTIONS: dict[str, tuple[Any, ...]] = {
    "act_algo": ("ifmr",),
    "wts_algo": ("arq_quantize",),
    "channel_wise": (False, True),
    "act_bits": (8, 16),
    "wts_bits": (8, 7, 6, 4),
}
"""Columns with a menu, and what the engine of this version can do in each."""

EDITABLE = (*FLAGS, *OPTIONS)

MEASURED = ("cosine", "error", "sqnr", "accumulated_error", "weight_range")

COLUMNS = (
    "name",
    "type",
    "shape",
    "parameters",
    "macs",
    "mac_share",
    "eligible",
    "reason",
    *EDITABLE,
    *MEASURED,
    "state",
)


def checked(column: str, value: Any) -> Any:
    """``value`` as the column stores it; raises if the column or the value is not allowed."""
    if column in FLAGS:
        if not isinstance(value, bool) and type(value).__name__ != "bool":
            raise WrongType(f"{value!r} is not true or false", where=column)
        return bool(value)
    if column not in OPTIONS:
        raise WrongValue(
            f"column {column!r} cannot be edited",
            where="layers",
            hint=f"Columns that can be edited: {', '.join(EDITABLE)}.",
        )
    allowed = OPTIONS[column]
    for candidate in allowed:
        if value == candidate and (isinstance(candidate, bool) == isinstance(value, bool)):
            return candidate
    raise WrongValue(
        f"{value!r} is not allowed", where=column, hint=f"Allowed: {', '.join(map(str, allowed))}."
    )


def refusal(layer: LayerInfo, column: str, value: Any) -> str:
    """Why a layer cannot have ``value`` in ``column``; empty if it can."""
    if not layer.eligible:
        return layer.reason or "the layer cannot be quantised"
    if column == "channel_wise" and value and not layer.channel_wise:
        return f"{layer.type} has one weight scale for all channels"
    return ""
