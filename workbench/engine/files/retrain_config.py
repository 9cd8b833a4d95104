"""The configuration of quantisation-aware training: what each layer is trained for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.engine.files.config import CHANNEL_WISE_LINEAR
from workbench.engine.files.config_json import duplicate_keys, load_json
from workbench.engine.files.layer_rules import LayerFacts, rules_for
from workbench.engine.files.problems import Problem, raise_problems
from workbench.engine.files.reading import read_text
from workbench.engine.files.record import BITS
from workbench.engine.files.retrain_rules import (
    RETRAIN_GLOBALS,
    RetrainReader,
    retrain_model_problems,
)
from workbench.engine.files.sidecar import read_sidecar

__all__ = [
    "RetrainConfig",
    "RetrainData",
    "RetrainLayer",
    "RetrainWeight",
    "default_retrain_config",
    "parse_retrain_config",
    "read_retrain_config",
]


@dataclass(frozen=True)
class RetrainData:
    """How a layer's input is quantised.

    ``clip_max`` and ``clip_min`` None: found by IFMR on the first batches. ``fixed_min`` None: 0 is
    the lower bound where the graph shows that no value is negative.
    """

    algo: str = "ulq_quantize"
    clip_max: float | None = None
    clip_min: float | None = None
    fixed_min: bool | None = None
    dst_type: str = "INT8"

    @property
    def bits(self) -> int:
        return BITS[self.dst_type]

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class RetrainWeight:
    """How a layer's weight is quantised; ``algo`` is arq_retrain or ulq_retrain."""

    algo: str = "arq_retrain"
    channel_wise: bool = True
    dst_type: str = "INT8"

    @property
    def bits(self) -> int:
        return BITS[self.dst_type]


@dataclass(frozen=True)
class RetrainLayer:
    """One layer's entry."""

    retrain_enable: bool = True
    data: RetrainData = field(default_factory=RetrainData)
    weight: RetrainWeight = field(default_factory=RetrainWeight)

    def to_dict(self) -> dict[str, Any]:
        return {
            "retrain_enable": self.retrain_enable,
            "retrain_data_config": self.data.to_dict(),
            "retrain_weight_config": dict(vars(self.weight)),
        }


@dataclass(frozen=True)
class RetrainConfig:
    """A whole configuration (chapter 30 section 3.1); a layer that is not in it stays float."""

    version: int = 1
    batch_num: int = 1
    fakequant_precision_mode: str = "DEFAULT"
    layers: Mapping[str, RetrainLayer] = field(default_factory=dict)

    def to_json(self) -> str:
        """The file's text: global keys in their order, then the layers in theirs."""
        data: dict[str, Any] = {"version": self.version}
        if self.fakequant_precision_mode != "DEFAULT":
            data["fakequant_precision_mode"] = self.fakequant_precision_mode
        data["batch_num"] = self.batch_num
        for name, layer in self.layers.items():
            data[name] = layer.to_dict()
        return json.dumps(data, indent=4, separators=(",", ":"), ensure_ascii=False)

    def enabled(self) -> tuple[str, ...]:
        """Names of the layers that are trained for quantisation."""
        return tuple(name for name, layer in self.layers.items() if layer.retrain_enable)


def default_weight(layer: LayerFacts, *, channel_wise_linear: bool = False) -> RetrainWeight:
    """The weight settings of a layer that nothing is said about."""
    rules = rules_for(layer, channel_wise_linear=channel_wise_linear)
    return RetrainWeight(channel_wise=rules.channel_wise)


def default_retrain_config(
    layers: Mapping[str, LayerFacts], *, channel_wise_linear: bool = False
) -> RetrainConfig:
    """Every eligible layer, enabled, with the built-in defaults.

    Raises one ``ValueError`` with all problems of the model (chapter 30 section 2.1).
    """
    raise_problems(retrain_model_problems(layers), source="create_quant_retrain_config")
    return RetrainConfig(
        layers={
            name: RetrainLayer(
                weight=default_weight(layer, channel_wise_linear=channel_wise_linear)
            )
            for name, layer in layers.items()
            if layer.eligible
        }
    )


def parse_retrain_config(
    text: str,
    *,
    source: str,
    layers: Mapping[str, LayerFacts] | None,
    channel_wise_linear: bool = False,
) -> RetrainConfig:
    """Read and check a JSON configuration; ``layers`` None: without checks against a model.

    Missing keys have their defaults. All problems are collected in one error: ``ConfigTypeError``
    (``TypeError``) for wrong JSON types, ``ConfigError`` (``ValueError``) for the rest, one that is
    both when both occur; ``JsonSyntaxError`` (``ValueError``) for text that is not JSON. Chapter 30
    section 3.1.
    """
    data, repeated = load_json(text, source=source)
    reader = RetrainReader(layers, channel_wise_linear=channel_wise_linear)
    reader.problems += duplicate_keys(repeated)
    if not isinstance(data, dict):
        reader.problems.append(
            Problem("", "the file", type(data).__name__, "a JSON object", is_type=True)
        )
        raise_problems(reader.problems, source=source)
        return RetrainConfig()
    top = reader.read_globals({k: v for k, v in data.items() if k in RETRAIN_GLOBALS})
    entries: dict[str, RetrainLayer] = {}
    for name, value in data.items():
        if name in RETRAIN_GLOBALS:
            continue
        raw = reader.read_layer(name, value)
        if raw is not None:
            weight = raw["weight"]
            if layers is not None:
                default = default_weight(layers[name], channel_wise_linear=channel_wise_linear)
                weight.setdefault("channel_wise", default.channel_wise)
            entries[name] = RetrainLayer(
                raw["retrain_enable"], RetrainData(**raw["data"]), RetrainWeight(**weight)
            )
    if not reader.problems and not any(entry.retrain_enable for entry in entries.values()):
        reader.problems.append(
            Problem("", "retrain_enable", "true for no layer", "true for at least one layer")
        )
    raise_problems(reader.problems, source=source)
    return RetrainConfig(**top, layers=entries)


def read_retrain_config(
    path: str | os.PathLike[str], layers: Mapping[str, LayerFacts] | None = None
) -> RetrainConfig:
    """``parse_retrain_config`` of a file, with the options of its sidecar.

    Errors: ``FileNotFoundError`` when it is missing.
    """
    text = read_text(path, what="retraining configuration")
    opted_in = read_sidecar(path).options.get(CHANNEL_WISE_LINEAR, False) is True
    return parse_retrain_config(
        text, source=os.fspath(path), layers=layers, channel_wise_linear=opted_in
    )
