"""The distillation configuration: how each layer is quantised, and which chains are trained."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.engine.errors import WrongValue
from workbench.engine.files.config_json import duplicate_keys, load_json
from workbench.engine.files.distill_rules import (
    ACTIVATION,
    GLOBAL_KEYS,
    GROUPS,
    WEIGHT,
    DistillReader,
)
from workbench.engine.files.layer_rules import LayerFacts
from workbench.engine.files.problems import Problem, raise_problems
from workbench.engine.files.reading import read_text
from workbench.engine.files.sidecar import read_sidecar

EXTENDED_TYPES = "extended_types"
"""Option in a configuration's sidecar: groups may hold further types of modules (D8)."""


@dataclass(frozen=True)
class DistillActivation:
    """How a layer's input is quantised; None: not in the file.

    Clips are given together or not at all; without them the first batches decide.
    """

    clip_max: float | None = None
    clip_min: float | None = None
    fixed_min: bool | None = None
    dst_type: str = "INT8"

    def to_dict(self) -> dict[str, Any]:
        result: dict[str, Any] = {"algo": "ulq_quantize"}
        if self.clip_max is not None and self.clip_min is not None:
            result |= {"clip_max": self.clip_max, "clip_min": self.clip_min}
        if self.fixed_min is not None:
            result["fixed_min"] = self.fixed_min
        return result | {"dst_type": self.dst_type}


@dataclass(frozen=True)
class DistillWeight:
    """How the weight of a layer is quantised: ``arq_distill`` or ``ulq_distill``."""

    algo: str = "arq_distill"
    channel_wise: bool = False
    dst_type: str = "INT8"

    def to_dict(self) -> dict[str, Any]:
        return {"algo": self.algo, "channel_wise": self.channel_wise, "dst_type": self.dst_type}


@dataclass(frozen=True)
class DistillLayer:
    """One layer's entry; a disabled layer stays float and is still trained with its group."""

    quant_enable: bool = True
    activation: DistillActivation = field(default_factory=DistillActivation)
    weight: DistillWeight = field(default_factory=DistillWeight)

    def to_dict(self) -> dict[str, Any]:
        return {
            "quant_enable": self.quant_enable,
            ACTIVATION: self.activation.to_dict(),
            WEIGHT: self.weight.to_dict(),
        }


@dataclass(frozen=True)
class DistillConfig:
    """A whole configuration (chapter 50 section 5); ``groups`` are chains of module names."""

    batch_num: int = 1
    group_size: int = 1
    data_dump: bool = False
    groups: tuple[tuple[str, ...], ...] = ()
    layers: Mapping[str, DistillLayer] = field(default_factory=dict)

    def to_json(self) -> str:
        """The file's text: global keys in their order, then layers as they are in ``layers``."""
        data: dict[str, Any] = {
            "version": 1,
            "batch_num": self.batch_num,
            "group_size": self.group_size,
            "data_dump": self.data_dump,
            GROUPS: [list(group) for group in self.groups],
        }
        data |= {name: layer.to_dict() for name, layer in self.layers.items()}
        return json.dumps(data, indent=4, separators=(",", ":"), ensure_ascii=False)

    def enabled(self) -> tuple[str, ...]:
        """Names of the layers that are quantised, in the order of ``layers``."""
        return tuple(name for name, layer in self.layers.items() if layer.quant_enable)


def parse_distill_config(
    text: str,
    *,
    source: str,
    layers: Mapping[str, LayerFacts] | None,
    modules: Mapping[str, str] | None,
    extended_types: bool = False,
) -> DistillConfig:
    """Read and check a JSON configuration.

    ``layers``: facts of the model's layers; ``modules``: the class name of each of its modules;
    None: without checks against a model. A supported layer without an entry is disabled, and not
    in the result. All problems are collected in one error: ``ConfigTypeError`` (``TypeError``) for
    wrong JSON types, ``ConfigError`` (``ValueError``) for the rest; ``JsonSyntaxError`` for text
    that is not JSON. Chapter 50 section 5.
    """
    data, repeated = load_json(text, source=source)
    reader = DistillReader(layers, modules, extended_types=extended_types)
    reader.problems += duplicate_keys(repeated)
    if not isinstance(data, dict):
        reader.add("", "the file", data, "a JSON object", is_type=True)
        raise_problems(reader.problems, source=source)
        return DistillConfig()
    known = reader.read_globals(data)
    groups = reader.read_groups(data)
    entries = {}
    for name, value in data.items():
        if name not in GLOBAL_KEYS and name != GROUPS:
            raw = reader.read_layer(name, value)
            if raw is not None:
                entries[name] = _layer(raw, layers[name].type if layers is not None else "")
    raise_problems(reader.problems, source=source)
    known.pop("version")
    config = DistillConfig(**known, groups=groups, layers=entries)
    if not config.enabled():
        problem = Problem("", "quant_enable", "false for every layer", "true for at least one")
        raise_problems([problem], source=f"{source}: no layer enabled")
    return config


def read_distill_config(
    path: str | os.PathLike[str],
    layers: Mapping[str, LayerFacts] | None = None,
    modules: Mapping[str, str] | None = None,
) -> DistillConfig:
    """``parse_distill_config`` of a file, with the options of its sidecar.

    Errors: ``ValueError`` for '' and a path that ends in '/'; ``FileNotFoundError``.
    """
    name = os.fspath(path)
    if not name or name.endswith("/"):
        raise WrongValue(f"the configuration is {name!r}; it must name a file")
    text = read_text(path, what="configuration")
    extended = read_sidecar(path).options.get(EXTENDED_TYPES, False)
    return parse_distill_config(
        text, source=name, layers=layers, modules=modules, extended_types=extended is True
    )


def _layer(raw: Mapping[str, Any], kind: str) -> DistillLayer:
    activation, weight = dict(raw[ACTIVATION]), dict(raw[WEIGHT])
    activation.pop("algo", None)
    weight.setdefault("channel_wise", kind == "Conv2d")
    return DistillLayer(
        quant_enable=raw["quant_enable"],
        activation=DistillActivation(**activation),
        weight=DistillWeight(**weight),
    )
