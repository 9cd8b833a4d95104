"""Types, ranges and mixtures of the JSON configuration's keys."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from workbench.engine.files.key_checks import (
    SWITCH,
    Field,
    KeyChecker,
    one_of,
    repeated_names,
)
from workbench.engine.files.layer_rules import (
    FUSIBLE_TYPES,
    TYPE_RULES,
    LayerFacts,
    TypeRules,
    channel_wise_words,
    int4_obstacle,
    int16_obstacle,
    rules_for,
    weight_bits_obstacle,
)
from workbench.engine.files.problems import Problem

GLOBAL_KEYS: dict[str, Field] = {
    "version": one_of("int", 1),
    "batch_num": Field("int", "a whole number above 0", lambda v: v > 0),
    "activation_offset": Field("bool", "true, false"),
    "do_fusion": Field("bool", "true, false"),
    "fakequant_precision_mode": one_of("str", "DEFAULT", "FORCE_FP16_QUANT"),
    "skip_fusion_layers": Field("names", "a list of names of Conv1d, Conv2d or Conv3d modules"),
}

_PERCENTILE = Field("float", "a number in (0.5, 1]", lambda v: 0.5 < v <= 1)
_OPEN_UNIT = Field("float", "a number in (0, 1)", lambda v: 0 < v < 1)

ACTIVATION_KEYS: dict[str, Field] = {
    "num_bits": one_of("int", 4, 8, 16),
    "max_percentile": _PERCENTILE,
    "min_percentile": _PERCENTILE,
    "search_range": Field("pair", "[start, end] with 0 < start < end", lambda v: 0 < v[0] < v[1]),
    "search_step": Field("float", "a number in (0, end - start] of search_range", lambda v: v > 0),
    "act_algo": one_of("str", "ifmr", "hfmg"),
    "asymmetric": Field("bool", "true, false"),
    "num_of_bins": one_of("int", 1024, 2048, 4096, 8192),
}
IFMR_ONLY = ("max_percentile", "min_percentile", "search_range", "search_step")

WEIGHT_KEYS: dict[str, Field] = {
    "num_bits": one_of("int", 4, 6, 7, 8),
    "reg_param": _OPEN_UNIT,
    "warm_start": _OPEN_UNIT,
    "num_iteration": Field("int", "a whole number, 0 or more", lambda v: v >= 0),
    "beta_range": Field("pair", "[start, end] with start > end > 0", lambda v: v[0] > v[1] > 0),
    "channel_wise": Field("bool", "true, false"),
    "wts_algo": one_of("str", "arq_quantize", "ada_quantize"),
}
ADA_ONLY = ("reg_param", "warm_start", "num_iteration", "beta_range")

_DMQ = Field("float", "a number with a decimal point in [0.2, 0.8]", lambda v: 0.2 <= v <= 0.8)


@dataclass(frozen=True)
class _LayerFields:
    activation: str = "activation_quant_params"
    weight: str = "weight_quant_params"


LAYER_FIELDS = _LayerFields()
_LAYER_KEYS = ("quant_enable", "dmq_balancer_param", LAYER_FIELDS.activation, LAYER_FIELDS.weight)


def default_asymmetric(layer: LayerFacts, activation_offset: bool) -> bool:
    return activation_offset and rules_for(layer).asymmetric


def skip_problems(names: Sequence[str], layers: Mapping[str, LayerFacts]) -> list[Problem]:
    """What is wrong with the names in ``skip_layers`` (chapter 10 sections 3.1 and 5.3).

    A layer of a quantisable type that stays float for a reason of its own may be named: it is
    skipped anyway, and a script written for a model with fewer such reasons goes on working.
    """
    problems = repeated_names("skip_layers", names)
    eligible = [name for name, layer in layers.items() if layer.eligible]
    for name in dict.fromkeys(names):
        layer = layers.get(name)
        if layer is None:
            problems.append(Problem("", "skip_layers", repr(name), Reader.names(name, eligible)))
        elif not layer.eligible and layer.type not in TYPE_RULES:
            allowed = f"quantisable layers; {layer.reason}"
            problems.append(Problem("", "skip_layers", repr(name), allowed))
    if eligible and set(eligible) <= set(names):
        problems.append(Problem("", "skip_layers", "every layer", "at least one layer left"))
    return problems


def model_problems(
    layers: Mapping[str, LayerFacts],
    *,
    keys: Collection[str] = tuple(GLOBAL_KEYS),
    types: Collection[str] = tuple(TYPE_RULES),
) -> list[Problem]:
    """Why a model as such cannot have a configuration with these global keys, for these types."""
    eligible = [name for name, layer in layers.items() if layer.eligible]
    problems = [
        Problem("", "the name of a layer", repr(name), "any but the global keys of the file")
        for name in eligible
        if name in keys
    ]
    if not eligible:
        reasons = "; ".join(f"{name}: {layer.reason}" for name, layer in layers.items())
        allowed = f"at least one {', '.join(types)}" + (f"; {reasons}" if reasons else "")
        problems.append(Problem("", "model", "without a layer that can be quantised", allowed))
    return problems


class Reader(KeyChecker):
    """Checks the parsed JSON piece by piece and collects every problem on the way."""

    def __init__(
        self, layers: Mapping[str, LayerFacts] | None, *, channel_wise_linear: bool = False
    ) -> None:
        super().__init__()
        self.layers = layers
        self._channel_wise_linear = channel_wise_linear

    def rules(self, layer: LayerFacts) -> TypeRules:
        return rules_for(layer, channel_wise_linear=self._channel_wise_linear)

    def read_globals(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The valid global keys, as arguments of ``QuantConfig``."""
        result = {}
        for key, value in data.items():
            checked = self.check("", key, value, GLOBAL_KEYS[key])
            if checked is not None:
                result[key] = checked
        self._check_fusion_names(result.get("skip_fusion_layers", ()))
        return result

    def read_layer(self, name: str, value: Any) -> dict[str, Any] | None:
        """The checked keys of one layer, or None when the entry as a whole is not usable."""
        layer = self._find(name)
        if self.layers is not None and layer is None:
            return None
        if not isinstance(value, dict):
            words = (
                "an object" if layer else f"an object, or a global key: {', '.join(GLOBAL_KEYS)}"
            )
            self.add(name, "the entry", value, words, is_type=True)
            return None
        self.unknown_keys(name, "", value, _LAYER_KEYS)
        enabled = False
        if "quant_enable" in value:
            checked = self.check(name, "quant_enable", value["quant_enable"], SWITCH)
            enabled = bool(checked)
        return {
            "quant_enable": enabled,
            "dmq_balancer_param": self._read_dmq(name, layer, value),
            LAYER_FIELDS.activation: self._read_activation(name, layer, enabled, value),
            LAYER_FIELDS.weight: self._read_weight(name, layer, value),
        }

    @staticmethod
    def names(name: str, known: Collection[str]) -> str:
        """What a wrong name could have been."""
        close = difflib.get_close_matches(name, list(known), n=3)
        return (
            f"names of quantisable layers, such as {', '.join(close)}"
            if close
            else ("names of quantisable layers of the model")
        )

    def _find(self, name: str) -> LayerFacts | None:
        if self.layers is None:
            return None
        layer = self.layers.get(name)
        if layer is None:
            eligible = [n for n, facts in self.layers.items() if facts.eligible]
            self.problems.append(Problem(name, "the name", repr(name), self.names(name, eligible)))
        elif not layer.eligible:
            self.problems.append(
                Problem(name, "the layer", "not quantisable", f"layers that are; {layer.reason}")
            )
        return layer

    def _read_dmq(
        self, name: str, layer: LayerFacts | None, value: Mapping[str, Any]
    ) -> float | None:
        key = "dmq_balancer_param"
        if key not in value:
            return None
        if isinstance(value[key], int) and not isinstance(value[key], bool):
            self.add(name, key, value[key], _DMQ.allowed, is_type=True)
            return None
        if layer is not None and layer.eligible and not rules_for(layer).dmq:
            self.add(name, key, value[key], f"nothing; a {layer.type} cannot be balanced")
        checked: float | None = self.check(name, key, value[key], _DMQ)
        return checked

    def _read_activation(
        self, name: str, layer: LayerFacts | None, enabled: bool, value: Mapping[str, Any]
    ) -> dict[str, Any]:
        section = LAYER_FIELDS.activation
        given = value.get(section, {})
        result = self.section(name, section, given, ACTIVATION_KEYS)
        self._check_mixture(
            name,
            [key for key in IFMR_ONLY if key in result],
            uses_other=result.get("act_algo") == "hfmg" or "num_of_bins" in result,
            allowed="without num_of_bins and act_algo hfmg",
        )
        if "num_of_bins" in result:
            if result.get("act_algo") == "ifmr":
                self.add(name, "num_of_bins", result["num_of_bins"], "only with act_algo hfmg")
            result["act_algo"] = "hfmg"
        if isinstance(given, dict):
            self._check_step(name, result, given)
        if layer is not None:
            if result.get("num_bits") == 16 and (obstacle := int16_obstacle(layer)):
                self.add(name, f"{section}.num_bits", 16, obstacle)
            if result.get("num_bits") == 4 and (obstacle := int4_obstacle(layer)):
                self.add(name, f"{section}.num_bits", 4, obstacle)
            if enabled and result.get("asymmetric") and not rules_for(layer).asymmetric:
                self.add(name, f"{section}.asymmetric", True, f"false for {layer.type}")
        return result

    def _read_weight(
        self, name: str, layer: LayerFacts | None, value: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        section = LAYER_FIELDS.weight
        if section not in value:
            return None
        result = self.section(name, section, value[section], WEIGHT_KEYS)
        algorithm = result.get("wts_algo", "arq_quantize")
        self._check_mixture(
            name,
            [key for key in ADA_ONLY if key in result],
            uses_other=algorithm == "arq_quantize",
            allowed="only with wts_algo ada_quantize",
        )
        if layer is not None:
            rules = self.rules(layer)
            if result.get("channel_wise") and not rules.channel_wise:
                self.add(name, f"{section}.channel_wise", True, channel_wise_words(layer.type))
            if algorithm == "ada_quantize" and not rules.ada:
                self.add(name, f"{section}.wts_algo", algorithm, f"arq_quantize for {layer.type}")
            bits = result.get("num_bits", 8)
            if obstacle := weight_bits_obstacle(layer, bits):
                self.add(name, f"{section}.num_bits", bits, obstacle)
        return result

    def _check_mixture(
        self, name: str, keys: Sequence[str], *, uses_other: bool, allowed: str
    ) -> None:
        if uses_other:
            for key in keys:
                self.problems.append(Problem(name, key, "given", allowed))

    def _check_step(
        self, name: str, activation: Mapping[str, Any], given: Mapping[str, Any]
    ) -> None:
        if "search_range" in given and "search_range" not in activation:
            return
        start, end = activation.get("search_range", (0.7, 1.3))
        step = activation.get("search_step", 0.01)
        # Decimal, because 0.6 > 1.3 - 0.7 in binary.
        span = Decimal(str(end)) - Decimal(str(start))
        if Decimal(str(step)) > span:
            self.add(name, "search_step", step, f"a number in (0, {span}], search_range's length")

    def _check_fusion_names(self, names: Sequence[str]) -> None:
        self.problems += repeated_names("skip_fusion_layers", names)
        for name in dict.fromkeys(names):
            if self.layers is not None:
                layer = self.layers.get(name)
                if layer is None or layer.type not in FUSIBLE_TYPES:
                    self.add(
                        "",
                        "skip_fusion_layers",
                        name,
                        f"names of {', '.join(FUSIBLE_TYPES)} modules of the model",
                    )
