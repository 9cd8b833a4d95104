"""The columns of the Layers table, which of them can be edited, and to what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workbench.engine.errors import WrongType, WrongValue
from workbench.engine.files.layer_rules import (
    RECURRENT,
    int16_obstacle,
    rules_for,
    weight_bits_obstacle,
)
from workbench.engine.files.retrain_rules import RETRAIN_TYPES
from workbench.engine.flows.prune_layers import channel_obstacle
from workbench.engine.graph.layers import LayerInfo

if TYPE_CHECKING:
    from workbench.studio.source_spec import SourceSpec

FLAGS = ("quant_enable", "retrain_enable", "prune_enable")
"""Boolean columns that a click toggles."""

OPTIONS: dict[str, tuple[Any, ...]] = {
    "act_algo": ("ifmr", "hfmg"),
    "wts_algo": ("arq_quantize", "ada_quantize"),
    "channel_wise": (False, True),
    "act_bits": (8, 16),
    "wts_bits": (8, 7, 6, 4),
}
"""Columns with a menu, and what the engine of this version can do in each."""

NUMBERS = {"dmq": (0.2, 0.8), "prune_ratio": (0.0, 1.0)}
"""Number columns and their range; of ``dmq`` 0 stands for "not used"."""

PRUNE = ("prune_enable", "prune_ratio")
"""Columns of channel pruning, which has its own reasons why a layer cannot take part."""

DEFAULT_RATIO = 0.2
"""``prune_ratio`` of a layer before anybody sets one, as chapter 40 section 2.1 recommends."""

EDITABLE = (*FLAGS, *OPTIONS, *NUMBERS)

MEASURED = ("cosine", "error", "sqnr", "accumulated_error", "weight_range", "prune_sensitivity")

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
    "pin",
)


def checked(column: str, value: Any) -> Any:
    """``value`` as the column stores it; raises if the column or the value is not allowed."""
    if column in FLAGS:
        if not isinstance(value, bool) and type(value).__name__ != "bool":
            raise WrongType(f"{value!r} is not true or false", where=column)
        return bool(value)
    if column == "prune_ratio":
        return _ratio(value)
    if column in NUMBERS:
        return _number(column, value)
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


def _number(column: str, value: Any) -> float:
    """``value`` as a float; None and NaN are 0, as an emptied cell gives them."""
    low, high = NUMBERS[column]
    if value is None:
        return 0.0
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise WrongType(f"{value!r} is not a number", where=column)
    number = float(value)
    if math.isnan(number) or number == 0.0:
        return 0.0
    if not low <= number <= high:
        raise WrongValue(
            f"{number:g} is not allowed", where=column, hint=f"Allowed: {low} to {high}, or 0: off."
        )
    return number


def _ratio(value: Any) -> float:
    """``value`` as a share of channels, the ends excluded."""
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise WrongType(f"{value!r} is not a number", where="prune_ratio")
    ratio = float(value)
    if not 0.0 < ratio < 1.0:
        raise WrongValue(
            f"{ratio:g} is not allowed",
            where="prune_ratio",
            hint="Allowed: above 0 and below 1; to keep all channels turn prune_enable off.",
        )
    return ratio


def trainable(layer: LayerInfo, source: SourceSpec) -> bool:
    """Whether quantisation-aware training handles a layer of a model of ``source``."""
    return not refusal(layer, "retrain_enable", True, source)


def without_training(
    columns: Mapping[str, Sequence[Any]], source: SourceSpec
) -> Mapping[str, Sequence[Any]]:
    """``columns`` of a model that cannot be trained say so, whichever version wrote them."""
    if source.trainable:
        return columns
    return {**columns, "retrain_enable": [False] * len(columns["retrain_enable"])}


def refusal(layer: LayerInfo, column: str, value: Any, source: SourceSpec) -> str:
    """Why a layer of a model of ``source`` cannot have ``value`` in ``column``; empty if it can."""
    if column in PRUNE:
        return channel_obstacle(layer) if value else ""
    if column == "retrain_enable" and value and source.no_training is not None:
        return source.no_training.message
    if not layer.eligible:
        return layer.reason or "the layer cannot be quantised"
    if column == "retrain_enable" and value and not _in_retrain_rules(layer):
        return f"{layer.type} cannot be trained for quantisation; it stays float in a training"
    if column == "channel_wise" and value and not layer.channel_wise:
        return f"{layer.type} has one weight scale for all channels"
    if column in ("wts_algo", "wts_bits") and not layer.has_weight:
        return f"{layer.type} has no weights"
    if column == "act_bits" and value == 16:
        return int16_obstacle(layer)
    if column == "wts_bits":
        return weight_bits_obstacle(layer, value)
    if column == "wts_algo" and value == "ada_quantize" and not rules_for(layer).ada:
        return f"rounding cannot be learned for a {layer.type}; use arq_quantize"
    if column == "dmq" and value and not rules_for(layer).dmq:
        return f"{layer.type} has no channels to balance"
    return ""


def _in_retrain_rules(layer: LayerInfo) -> bool:
    return layer.type in RETRAIN_TYPES and layer.type not in RECURRENT
