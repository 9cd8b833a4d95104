"""Types, ranges and mixtures of the retraining configuration's keys (chapter 30 section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.engine.files.config_rules import Reader, model_problems
from workbench.engine.files.key_checks import SWITCH, Field, KeyChecker, one_of
from workbench.engine.files.layer_rules import (
    RECURRENT,
    LayerFacts,
    channel_wise_words,
    int16_obstacle,
    rules_for,
    weight_bits_obstacle,
)
from workbench.engine.files.problems import Problem

RETRAIN_TYPES = (
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "Linear",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "LSTM",
    "GRU",
)
"""Types of layers that quantisation-aware training handles (chapter 30 section 1)."""

BIT_PAIRS = (("INT8", "INT8"), ("INT16", "INT8"), ("INT8", "INT4"), ("INT4", "INT4"))
"""Allowed (activation, weight) types."""

RETRAIN_GLOBALS: dict[str, Field] = {
    "version": one_of("int", 1),
    "batch_num": Field("int", "a whole number above 0", lambda v: v > 0),
    "fakequant_precision_mode": one_of("str", "DEFAULT", "FORCE_FP16_QUANT"),
}
DATA_KEYS: dict[str, Field] = {
    "algo": one_of("str", "ulq_quantize"),
    "clip_max": Field("float", "a number above 0, together with clip_min", lambda v: v > 0),
    "clip_min": Field("float", "a number below 0, together with clip_max", lambda v: v < 0),
    "fixed_min": Field("bool", "true, false"),
    "dst_type": one_of("str", "INT4", "INT8", "INT16"),
}
WEIGHT_KEYS: dict[str, Field] = {
    "algo": one_of("str", "arq_retrain", "ulq_retrain"),
    "channel_wise": Field("bool", "true, false"),
    "dst_type": one_of("str", "INT4", "INT8"),
}
DATA = "retrain_data_config"
WEIGHT = "retrain_weight_config"
_LAYER_KEYS = ("retrain_enable", DATA, WEIGHT)


def retrain_model_problems(layers: Mapping[str, LayerFacts]) -> list[Problem]:
    """Why a model as such cannot have a configuration."""
    return model_problems(layers, keys=RETRAIN_GLOBALS, types=RETRAIN_TYPES)


def pair_problem(data_type: str, weight_type: str) -> str:
    """Why the two types cannot go together; empty when they can."""
    if (data_type, weight_type) in BIT_PAIRS:
        return ""
    return ", ".join(f"{d} with weights of {w}" for d, w in BIT_PAIRS)


def data_type_obstacle(layer: LayerFacts, dst_type: str) -> str:
    """Why the layer's activations cannot have this type; empty when they can."""
    if dst_type == "INT16":
        return int16_obstacle(layer)
    if dst_type == "INT4" and layer.type in RECURRENT:
        return f"{layer.type} layers take INT8 or INT16"
    return ""


def int4_weight_obstacle(layer: LayerFacts) -> str:
    """Why the layer's weights cannot be trained with 4 bits; empty when they can."""
    if layer.type in RECURRENT:
        return f"{layer.type} layers are trained with weights of INT8"
    return weight_bits_obstacle(layer, 4)


class RetrainReader(KeyChecker):
    """Checks the parsed JSON piece by piece and collects every problem on the way."""

    def __init__(
        self, layers: Mapping[str, LayerFacts] | None, *, channel_wise_linear: bool = False
    ) -> None:
        super().__init__()
        self.layers = layers
        self._channel_wise_linear = channel_wise_linear

    def read_globals(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The valid global keys, as arguments of ``RetrainConfig``."""
        checked = {key: self.check("", key, v, RETRAIN_GLOBALS[key]) for key, v in data.items()}
        return {key: value for key, value in checked.items() if value is not None}

    def read_layer(self, name: str, value: Any) -> dict[str, Any] | None:
        """The checked keys of one layer, or None when the entry as a whole is not usable."""
        layer = self._find(name)
        if self.layers is not None and layer is None:
            return None
        if not isinstance(value, dict):
            words = f"an object, or a global key: {', '.join(RETRAIN_GLOBALS)}"
            self.add(name, "the entry", value, words)
            return None
        self.unknown_keys(name, "", value, _LAYER_KEYS)
        enabled: Any = True
        if "retrain_enable" in value:
            enabled = self.check(name, "retrain_enable", value["retrain_enable"], SWITCH)
        data = self.section(name, DATA, value.get(DATA, {}), DATA_KEYS)
        weight = self.section(name, WEIGHT, value.get(WEIGHT, {}), WEIGHT_KEYS)
        self._check_clips(name, value.get(DATA))
        self._check_types(name, layer, data, weight)
        return {"retrain_enable": bool(enabled), "data": data, "weight": weight}

    def _find(self, name: str) -> LayerFacts | None:
        if self.layers is None:
            return None
        layer = self.layers.get(name)
        if layer is None:
            eligible = [n for n, facts in self.layers.items() if facts.eligible]
            self.add(name, "the name", name, Reader.names(name, eligible))
        elif not layer.eligible:
            words = f"layers that can be trained; {layer.reason}"
            self.problems.append(Problem(name, "the layer", "not trainable", words))
        return layer

    def _check_clips(self, name: str, given: Any) -> None:
        if isinstance(given, dict) and ("clip_max" in given) != ("clip_min" in given):
            have, lack = ("max", "min") if "clip_max" in given else ("min", "max")
            key = f"clip_{have}"
            self.add(name, f"{DATA}.{key}", given[key], f"only together with clip_{lack}")

    def _check_types(
        self,
        name: str,
        layer: LayerFacts | None,
        data: Mapping[str, Any],
        weight: Mapping[str, Any],
    ) -> None:
        data_type, weight_type = data.get("dst_type", "INT8"), weight.get("dst_type", "INT8")
        if words := pair_problem(data_type, weight_type):
            self.add(name, f"{DATA}.dst_type", f"{data_type} with weights of {weight_type}", words)
        if layer is None or not layer.eligible:
            return
        rules = rules_for(layer, channel_wise_linear=self._channel_wise_linear)
        if weight.get("channel_wise") and not rules.channel_wise:
            self.add(name, f"{WEIGHT}.channel_wise", True, channel_wise_words(layer.type))
        if words := data_type_obstacle(layer, data_type):
            self.add(name, f"{DATA}.dst_type", data_type, words)
        if weight_type == "INT4" and (words := int4_weight_obstacle(layer)):
            self.add(name, f"{WEIGHT}.dst_type", "INT4", words)
