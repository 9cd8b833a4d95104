"""Keys of the distillation configuration, their values, and what a layer may have.

Source: specification chapter 50 sections 2, 4 and 5, D9, D10 and D20.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from workbench.engine.files.key_checks import SWITCH, Field, KeyChecker, one_of
from workbench.engine.files.layer_rules import LayerFacts, weight_bits_obstacle
from workbench.engine.files.problems import Problem

ANCHOR_TYPES = ("Conv2d", "Linear")
"""Types of the layers that distillation quantises."""

GROUP_TYPES = (
    *ANCHOR_TYPES,
    "BatchNorm2d",
    "SyncBatchNorm",
    "ReLU",
    "LeakyReLU",
    "Sigmoid",
    "Tanh",
    "Softmax",
)
"""Types of the modules that a group may hold."""

EXTENDED_GROUP_TYPES = (
    "ReLU6",
    "GELU",
    "SiLU",
    "Hardswish",
    "Hardsigmoid",
    "Identity",
    "Dropout",
    "LayerNorm",
)
"""What a group may hold besides with ``extended_types`` (D8)."""

GROUPS = "distill_group"
ACTIVATION = "distill_data_config"
WEIGHT = "distill_weight_config"

GLOBAL_KEYS: dict[str, Field] = {
    "version": one_of("int", 1),
    "batch_num": Field("int", "a whole number above 0", lambda v: v > 0),
    "group_size": Field("int", "a whole number above 0", lambda v: v > 0),
    "data_dump": SWITCH,
}
_DST_TYPE = one_of("str", "INT8", "INT4")
_ACTIVATION_KEYS: dict[str, Field] = {
    "algo": one_of("str", "ulq_quantize"),
    "clip_max": Field("float", "a number above 0", lambda v: v > 0),
    "clip_min": Field("float", "a number below 0", lambda v: v < 0),
    "fixed_min": SWITCH,
    "dst_type": _DST_TYPE,
}
_WEIGHT_KEYS: dict[str, Field] = {
    "algo": one_of("str", "arq_distill", "ulq_distill"),
    "channel_wise": SWITCH,
    "dst_type": _DST_TYPE,
}
_LAYER_KEYS = ("quant_enable", ACTIVATION, WEIGHT)


def group_types(*, extended: bool) -> tuple[str, ...]:
    return GROUP_TYPES + EXTENDED_GROUP_TYPES if extended else GROUP_TYPES


def supported(layer: LayerFacts) -> bool:
    return layer.eligible and layer.type in ANCHOR_TYPES


def model_problems(layers: Mapping[str, LayerFacts]) -> list[Problem]:
    """Why a model as such cannot be distilled."""
    anchors = [name for name, layer in layers.items() if supported(layer)]
    problems = [
        Problem("", "the name of a layer", repr(name), "any but the global keys of the file")
        for name in anchors
        if name in GLOBAL_KEYS or name == GROUPS
    ]
    if not anchors:
        reasons = "; ".join(
            f"{name}: {layer.reason}"
            for name, layer in layers.items()
            if layer.type in ANCHOR_TYPES and layer.reason
        )
        allowed = f"at least one {' or '.join(ANCHOR_TYPES)} that can be quantised"
        if reasons:
            allowed += f"; {reasons}"
        problems.append(Problem("", "model", "without a supported distillation layer", allowed))
    return problems


def name_hint(name: str, known: Collection[str]) -> str:
    """What a wrong name could have been."""
    close = difflib.get_close_matches(name, list(known), n=3)
    listed = f", such as {', '.join(close)}" if close else " of the model"
    return f"names of layers that can be distilled{listed}"


def int4_obstacle(layer: LayerFacts) -> str:
    """Why the layer cannot have 4 bits; '' when it can."""
    return weight_bits_obstacle(layer, 4).removesuffix("; 8")


class DistillReader(KeyChecker):
    """Checks the parsed JSON piece by piece.

    ``layers``: facts of the model's layers; ``modules``: class name of every module. None: without
    checks against a model.
    """

    def __init__(
        self,
        layers: Mapping[str, LayerFacts] | None,
        modules: Mapping[str, str] | None,
        *,
        extended_types: bool,
    ) -> None:
        super().__init__()
        self._layers = layers
        self._modules = modules
        self._group_types = group_types(extended=extended_types)

    def read_globals(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The valid global keys; every one of them must be there."""
        result = {}
        for key, spec in GLOBAL_KEYS.items():
            if key not in data:
                self.problems.append(Problem("", key, "missing", spec.allowed))
                continue
            checked = self.check("", key, data[key], spec)
            if checked is not None:
                result[key] = checked
        return result

    def read_groups(self, data: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
        words = "a list of lists of module names"
        if GROUPS not in data:
            self.problems.append(Problem("", GROUPS, "missing", words))
            return ()
        given = data[GROUPS]
        if not isinstance(given, list):
            self.add("", GROUPS, given, words, is_type=True)
            return ()
        groups = []
        for number, group in enumerate(given):
            key = f"{GROUPS}[{number}]"
            if not isinstance(group, list) or not all(isinstance(name, str) for name in group):
                self.add("", key, group, "a list of module names", is_type=True)
            elif not group:
                self.add("", key, group, "at least one module name; leave the group out")
            else:
                self._check_members(key, group)
                groups.append(tuple(group))
        return tuple(groups)

    def read_layer(self, name: str, value: Any) -> dict[str, Any] | None:
        """The checked keys of one layer, or None when the entry as a whole is not usable."""
        layer = None
        if self._layers is not None:
            layer = self._layers.get(name)
            if layer is None or layer.type not in ANCHOR_TYPES:
                anchors = [n for n, facts in self._layers.items() if supported(facts)]
                self.problems.append(
                    Problem(name, "the name", repr(name), name_hint(name, anchors))
                )
                return None
            if not layer.eligible:
                allowed = f"layers that are; {layer.reason}"
                self.problems.append(Problem(name, "the layer", "not quantisable", allowed))
                return None
        if not isinstance(value, dict):
            words = f"an object, or a global key: {', '.join((*GLOBAL_KEYS, GROUPS))}"
            self.add(name, "the entry", value, words, is_type=True)
            return None
        self.unknown_keys(name, "", value, _LAYER_KEYS)
        enabled = True
        if "quant_enable" in value:
            enabled = bool(self.check(name, "quant_enable", value["quant_enable"], SWITCH))
        activation = self.section(name, ACTIVATION, value.get(ACTIVATION, {}), _ACTIVATION_KEYS)
        weight = self.section(name, WEIGHT, value.get(WEIGHT, {}), _WEIGHT_KEYS)
        self._check_pairs(name, value.get(ACTIVATION), activation, weight)
        if layer is not None:
            self._check_layer(layer, enabled, weight)
        return {"quant_enable": enabled, ACTIVATION: activation, WEIGHT: weight}

    def _check_members(self, key: str, group: list[str]) -> None:
        ends = f"{key}, {group[0]} to {group[-1]}"
        for name in group if self._modules is not None else ():
            kind = self._modules.get(name) if self._modules is not None else None
            if kind is None:
                self.problems.append(Problem("", ends, repr(name), "names of the model's modules"))
            elif kind not in self._group_types:
                allowed = f"modules of type {', '.join(self._group_types)}"
                self.problems.append(Problem("", ends, f"{name!r} ({kind})", allowed))

    def _check_pairs(
        self,
        name: str,
        given: Any,
        activation: Mapping[str, Any],
        weight: Mapping[str, Any],
    ) -> None:
        if isinstance(given, dict):
            for key, other in (("clip_max", "clip_min"), ("clip_min", "clip_max")):
                if key in given and other not in given:
                    self.add(name, f"{ACTIVATION}.{key}", given[key], f"together with {other} only")
        kind = activation.get("dst_type", "INT8")
        if weight.get("dst_type", "INT8") != kind:
            allowed = f"{kind}, as {ACTIVATION}.dst_type is"
            self.add(name, f"{WEIGHT}.dst_type", weight.get("dst_type", "INT8"), allowed)

    def _check_layer(self, layer: LayerFacts, enabled: bool, weight: Mapping[str, Any]) -> None:
        if weight.get("channel_wise") and layer.type == "Linear":
            self.add(layer.name, f"{WEIGHT}.channel_wise", True, "false for Linear")
        if enabled and weight.get("dst_type") == "INT4" and (obstacle := int4_obstacle(layer)):
            self.add(layer.name, f"{WEIGHT}.dst_type", "INT4", f"INT8; {obstacle}")
