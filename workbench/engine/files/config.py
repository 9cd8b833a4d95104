"""The post-training configuration: what each layer is to be quantised to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.engine.errors import WrongState, WrongValue
from workbench.engine.files.config_json import JsonSyntaxError, duplicate_keys, load_json
from workbench.engine.files.config_rules import (
    GLOBAL_KEYS,
    LAYER_FIELDS,
    Reader,
    default_asymmetric,
    model_problems,
    skip_problems,
)
from workbench.engine.files.layer_rules import LayerFacts, rules_for
from workbench.engine.files.problems import Problem, raise_problems
from workbench.engine.files.reading import read_text
from workbench.engine.files.sidecar import read_sidecar

__all__ = [
    "CHANNEL_WISE_LINEAR",
    "ActivationParams",
    "JsonSyntaxError",
    "LayerConfig",
    "LayerFacts",
    "QuantConfig",
    "WeightParams",
    "default_config",
    "default_weight",
    "parse_config",
    "read_config",
    "require_enabled",
]

CHANNEL_WISE_LINEAR = "channel_wise_linear"
"""Option in a configuration's sidecar: weights of Linear layers may have one scale per output."""


@dataclass(frozen=True)
class ActivationParams:
    """How a layer's input is quantised; ``asymmetric`` None: the global ``activation_offset``."""

    num_bits: int = 8
    act_algo: str = "ifmr"
    asymmetric: bool | None = None
    max_percentile: float = 0.999999
    min_percentile: float = 0.999999
    search_range: tuple[float, float] = (0.7, 1.3)
    search_step: float = 0.01
    num_of_bins: int = 4096

    def to_dict(self) -> dict[str, Any]:
        """The keys that the algorithm uses, in the order of the format."""
        used = {"num_bits": self.num_bits}
        rest: dict[str, Any]
        if self.act_algo == "ifmr":
            rest = {
                "max_percentile": self.max_percentile,
                "min_percentile": self.min_percentile,
                "search_range": list(self.search_range),
                "search_step": self.search_step,
                "act_algo": self.act_algo,
            }
        else:
            rest = {"act_algo": self.act_algo}
        if self.asymmetric is not None:
            rest["asymmetric"] = self.asymmetric
        if self.act_algo == "hfmg":
            rest["num_of_bins"] = self.num_of_bins
        return used | rest


@dataclass(frozen=True)
class WeightParams:
    """How the weight of a layer is quantised."""

    num_bits: int = 8
    wts_algo: str = "arq_quantize"
    channel_wise: bool = False
    reg_param: float = 0.01
    warm_start: float = 0.2
    num_iteration: int = 10000
    beta_range: tuple[float, float] = (20.0, 2.0)

    def to_dict(self) -> dict[str, Any]:
        """The keys that the algorithm uses, in the order of the format."""
        result: dict[str, Any] = {"num_bits": self.num_bits}
        if self.wts_algo == "ada_quantize":
            result |= {
                "reg_param": self.reg_param,
                "warm_start": self.warm_start,
                "num_iteration": self.num_iteration,
                "beta_range": list(self.beta_range),
            }
        return result | {"channel_wise": self.channel_wise, "wts_algo": self.wts_algo}


@dataclass(frozen=True)
class LayerConfig:
    """One layer's entry. ``weight`` None: a layer without weight, and not in the file."""

    quant_enable: bool
    activation: ActivationParams = field(default_factory=ActivationParams)
    weight: WeightParams | None = field(default_factory=WeightParams)
    dmq_balancer_param: float | None = None

    def to_dict(self) -> dict[str, Any]:
        result: dict[str, Any] = {"quant_enable": self.quant_enable}
        if self.dmq_balancer_param is not None:
            result["dmq_balancer_param"] = self.dmq_balancer_param
        result["activation_quant_params"] = self.activation.to_dict()
        if self.weight is not None:
            result["weight_quant_params"] = self.weight.to_dict()
        return result


@dataclass(frozen=True)
class QuantConfig:
    """A whole configuration (chapter 10 section 4); ``layers`` holds disabled layers too."""

    version: int = 1
    batch_num: int = 1
    activation_offset: bool = True
    do_fusion: bool = True
    fakequant_precision_mode: str = "DEFAULT"
    skip_fusion_layers: tuple[str, ...] = ()
    layers: Mapping[str, LayerConfig] = field(default_factory=dict)

    def to_json(self) -> str:
        """The file's text: global keys in their order, then layers sorted by name."""
        data: dict[str, Any] = {
            "version": self.version,
            "batch_num": self.batch_num,
            "activation_offset": self.activation_offset,
            "do_fusion": self.do_fusion,
        }
        if self.fakequant_precision_mode != "DEFAULT":
            data["fakequant_precision_mode"] = self.fakequant_precision_mode
        data["skip_fusion_layers"] = list(self.skip_fusion_layers)
        for name in sorted(self.layers):
            data[name] = self.layers[name].to_dict()
        return json.dumps(data, indent=4, separators=(",", ":"), ensure_ascii=False)

    def enabled(self) -> tuple[str, ...]:
        """Names of the layers that are quantised, in the order of ``layers``."""
        return tuple(name for name, layer in self.layers.items() if layer.quant_enable)

    def asymmetric(self, name: str) -> bool:
        """Whether the layer's activation has an offset, after the global default is applied."""
        own = self.layers[name].activation.asymmetric
        return self.activation_offset if own is None else own

    def with_enabled(self, flags: Mapping[str, bool]) -> QuantConfig:
        """A copy with ``quant_enable`` of these layers set; ``ValueError`` for unknown names."""
        unknown = sorted(set(flags) - set(self.layers))
        if unknown:
            raise WrongValue(f"no layer named {', '.join(unknown)} in the configuration")
        layers = {
            name: dataclasses.replace(layer, quant_enable=flags.get(name, layer.quant_enable))
            for name, layer in self.layers.items()
        }
        return dataclasses.replace(self, layers=layers)

    def digest(self) -> str:
        """Hash of the file's text: the same for equal configurations, on every machine."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def default_config(
    layers: Mapping[str, LayerFacts],
    *,
    skip_layers: Collection[str] | None = None,
    batch_num: int = 1,
    activation_offset: bool = True,
    channel_wise_linear: bool = False,
) -> QuantConfig:
    """Every eligible layer with the built-in defaults, ``skip_layers`` disabled.

    ``channel_wise_linear``: weights of Linear layers get one scale per output, too (D11).
    Raises one ``ValueError`` with all problems of the arguments (chapter 10 section 3.1).
    """
    skipped = list(skip_layers or ())
    problems = []
    if isinstance(batch_num, bool) or not isinstance(batch_num, int):
        problems.append(Problem("", "batch_num", repr(batch_num), "a whole number", is_type=True))
    elif batch_num <= 0:
        problems.append(Problem("", "batch_num", repr(batch_num), "a whole number above 0"))
    problems += model_problems(layers)
    problems += skip_problems(skipped, layers)
    raise_problems(problems, source="create_quant_config")
    left_out = set(skipped)
    return QuantConfig(
        batch_num=batch_num,
        activation_offset=activation_offset,
        layers={
            name: LayerConfig(
                quant_enable=name not in left_out,
                activation=ActivationParams(
                    asymmetric=default_asymmetric(layer, activation_offset)
                ),
                weight=default_weight(layer, channel_wise_linear=channel_wise_linear),
            )
            for name, layer in layers.items()
            if layer.eligible
        },
    )


def default_weight(layer: LayerFacts, *, channel_wise_linear: bool = False) -> WeightParams:
    """The settings of a layer whose entry has no ``weight_quant_params``."""
    rules = rules_for(layer, channel_wise_linear=channel_wise_linear)
    return WeightParams(channel_wise=rules.channel_wise)


def parse_config(
    text: str,
    *,
    source: str,
    layers: Mapping[str, LayerFacts] | None,
    channel_wise_linear: bool = False,
) -> QuantConfig:
    """Read and check a JSON configuration; ``layers`` None: without checks against a model.

    ``channel_wise_linear`` allows ``channel_wise: true`` on Linear layers.
    All problems are collected in one error: ``ConfigTypeError`` (``TypeError``) for wrong JSON
    types, ``ConfigError`` (``ValueError``) for the rest, one that is both when both occur.
    ``JsonSyntaxError`` for text that is not JSON. Chapter 10 sections 4 and 5.3, D12.
    """
    data, repeated = load_json(text, source=source)
    reader = Reader(layers, channel_wise_linear=channel_wise_linear)
    reader.problems += duplicate_keys(repeated)
    if not isinstance(data, dict):
        reader.problems.append(
            Problem("", "the file", type(data).__name__, "a JSON object", is_type=True)
        )
        raise_problems(reader.problems, source=source)
        return QuantConfig()
    top = reader.read_globals({k: v for k, v in data.items() if k in GLOBAL_KEYS})
    entries = {}
    for name, value in data.items():
        if name not in GLOBAL_KEYS:
            raw = reader.read_layer(name, value)
            if raw is not None:
                layer = layers[name] if layers is not None else None
                entries[name] = _layer_config(raw, layer, reader)
    raise_problems(reader.problems, source=source)
    return QuantConfig(**top, layers=entries)


def read_config(
    path: str | os.PathLike[str], layers: Mapping[str, LayerFacts] | None = None
) -> QuantConfig:
    """``parse_config`` of a file, with the options of its sidecar.

    Errors: ``FileNotFoundError`` when it is missing.
    """
    text = read_text(path, what="configuration")
    opted_in = read_sidecar(path).options.get(CHANNEL_WISE_LINEAR, False)
    return parse_config(text, source=str(path), layers=layers, channel_wise_linear=opted_in is True)


def require_enabled(config: QuantConfig, *, source: str = "the configuration") -> None:
    """Raise ``RuntimeError`` when no layer is enabled."""
    if not config.enabled():
        raise WrongState(
            "no layer is enabled",
            where=source,
            hint='Set "quant_enable":true for at least one layer.',
        )


def _layer_config(raw: Mapping[str, Any], layer: LayerFacts | None, reader: Reader) -> LayerConfig:
    rules = reader.rules(layer) if layer is not None else None
    activation = ActivationParams(**raw[LAYER_FIELDS.activation])
    if rules is not None and not rules.asymmetric:
        # A disabled layer too: it may be enabled later, without a second look at its entry.
        activation = dataclasses.replace(activation, asymmetric=False)
    weight: WeightParams | None = None
    given = raw[LAYER_FIELDS.weight]
    if given is not None or layer is None or layer.has_weight:
        given = dict(given or {})
        given.setdefault("channel_wise", rules.channel_wise if rules is not None else False)
        weight = WeightParams(**given)
    return LayerConfig(
        quant_enable=raw["quant_enable"],
        activation=activation,
        weight=weight,
        dmq_balancer_param=raw["dmq_balancer_param"],
    )
