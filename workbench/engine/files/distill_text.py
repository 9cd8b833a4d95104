"""The text configuration (``.cfg``) of distillation, resolved to one entry for every layer.

Source: specification chapter 50 section 4, D9 and D10.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from workbench.engine.files.distill_config import (
    DistillActivation,
    DistillConfig,
    DistillLayer,
    DistillWeight,
)
from workbench.engine.files.distill_rules import (
    GLOBAL_KEYS,
    int4_obstacle,
    model_problems,
    name_hint,
    supported,
)
from workbench.engine.files.key_checks import repeated_names
from workbench.engine.files.layer_rules import LayerFacts
from workbench.engine.files.problems import Problem, raise_problems
from workbench.engine.files.proto_schema import message_class
from workbench.engine.files.reading import read_text
from workbench.engine.files.text_message import merge_text, required_problems

logger = logging.getLogger("workbench.engine.files")

LAYER_LIST = "distill_override_layers"
TYPE_LIST = "distill_override_layer_types"
_DST_TYPES = ("INT4", "INT8")


@dataclass(frozen=True)
class DistillTextConfig:
    """A text configuration that protobuf could read; ``message`` is an ``AMCTDistillConfig``."""

    source: str
    message: Any

    def groups(self) -> tuple[tuple[str, str], ...]:
        """First and last module of every group that the user gives."""
        return tuple(
            (group.start_layer_name, group.end_layer_name) for group in self.message.distill_group
        )


def load_distill_text(path: str | os.PathLike[str]) -> DistillTextConfig:
    """The file as protobuf reads it, before any model is looked at.

    Errors: ``FileNotFoundError``; ``TextConfigError`` (``ParseError``, ``ValueError``) naming the
    line.
    """
    return parse_distill_text(read_text(path, what="text configuration"), source=os.fspath(path))


def parse_distill_text(text: str, *, source: str) -> DistillTextConfig:
    """``load_distill_text`` of a text."""
    name = "AMCTPytorchDistillProto.AMCTDistillConfig"
    message = message_class("distill_config_pytorch.proto", name)()
    merge_text(text, message, source=source)
    return DistillTextConfig(source, message)


def resolve_distill_text(
    text: DistillTextConfig | None, layers: Mapping[str, LayerFacts], *, source: str = ""
) -> DistillConfig:
    """The configuration that a text means for a model with these layers, without its groups.

    None: all defaults. Raises one ``ConfigError`` (``ValueError``) with every problem.
    """
    text = text or parse_distill_text("", source=source)
    reader = _TextReader(text.message, layers)
    config = reader.read()
    raise_problems(reader.problems, source=text.source)
    for line in reader.warnings:
        logger.warning("%s: %s", text.source, line)
    return config


@dataclass(frozen=True)
class _Block:
    """Settings of one place of the file; ``channel_wise`` None: not given."""

    activation: DistillActivation = field(default_factory=DistillActivation)
    weight: DistillWeight = field(default_factory=DistillWeight)
    channel_wise: bool | None = None


class _TextReader:
    """Collects the problems of a message, and what the log has to say when there is none."""

    def __init__(self, message: Any, layers: Mapping[str, LayerFacts]) -> None:
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self._message = message
        self._per_tensor: dict[str, list[str]] = {}
        self._eight_bits: dict[str, list[str]] = {}
        self._anchors = {name: layer for name, layer in layers.items() if supported(layer)}
        self.problems += required_problems(message)
        self.problems += model_problems(layers)

    def read(self) -> DistillConfig:
        message = self._message
        for key in ("batch_num", "group_size"):
            value = getattr(message, key)
            if not GLOBAL_KEYS[key].fits(value):
                self._add(key, str(value), GLOBAL_KEYS[key].allowed)
        common = self._block(message, "the global settings")
        by_layer = self._overrides(LAYER_LIST, "layer_name", self._check_names)
        by_type = self._overrides(TYPE_LIST, "layer_type", self._check_types)
        skipped = self._skipped()
        entries = {
            name: DistillLayer(quant_enable=False, weight=_default_weight(layer))
            if name in skipped
            else self._entry(layer, common, by_layer, by_type)
            for name, layer in self._anchors.items()
        }
        if entries and not any(entry.quant_enable for entry in entries.values()):
            self._add("quant_skip_layers", "every layer", "at least one layer enabled")
        for where, names in self._per_tensor.items():
            self.warnings.append(
                f"{where}: channel_wise is true, allowed: false for Linear; "
                f"set to false for {_some(names)}"
            )
        for where, names in self._eight_bits.items():
            self.warnings.append(f"{where}: INT4 is set to INT8 for {_some(names)}")
        return DistillConfig(
            batch_num=message.batch_num,
            group_size=message.group_size,
            data_dump=message.data_dump,
            layers=entries,
        )

    def _overrides(self, field: str, key: str, check: Any) -> dict[str, _Block]:
        given = [o for o in getattr(self._message, field) if o.HasField(key)]
        names = [getattr(override, key) for override in given]
        self.problems += repeated_names(field, names)
        check(field, names)
        return {
            name: self._block(override, f"{field} {name!r}")
            for name, override in zip(names, given, strict=True)
        }

    def _skipped(self) -> set[str]:
        names = list(self._message.quant_skip_layers)
        kinds = list(self._message.quant_skip_layer_types)
        repeated = repeated_names("quant_skip_layers", names)
        repeated += repeated_names("quant_skip_layer_types", kinds)
        self.warnings += [f"{problem.key}: {problem.value}" for problem in repeated]
        self._check_names("quant_skip_layers", names)
        self._check_types("quant_skip_layer_types", kinds)
        of_kind = [name for name, layer in self._anchors.items() if layer.type in kinds]
        return {*names, *of_kind}

    def _check_names(self, field: str, names: Sequence[str]) -> None:
        for name in dict.fromkeys(names):
            if name not in self._anchors:
                self._add(field, repr(name), name_hint(name, self._anchors))

    def _check_types(self, field: str, kinds: Sequence[str]) -> None:
        present = dict.fromkeys(layer.type for layer in self._anchors.values())
        for kind in dict.fromkeys(kinds):
            if kind not in present:
                self._add(field, repr(kind), f"types of this model's layers: {', '.join(present)}")

    def _block(self, message: Any, where: str) -> _Block:
        data = message.distill_data_quant_config
        activation = DistillActivation()
        if data.HasField("ulq_quantize"):
            activation = self._activation(data.ulq_quantize, where)
        weights = message.distill_weight_quant_config
        weight, channel_wise = DistillWeight(), None
        chosen = weights.WhichOneof("weights_quant_algo")
        if chosen is not None:
            given = getattr(weights, chosen)
            weight = DistillWeight(algo=chosen, dst_type=_DST_TYPES[given.dst_type])
            channel_wise = given.channel_wise if given.HasField("channel_wise") else None
        if activation.dst_type != weight.dst_type:
            allowed = f"{activation.dst_type}, as that of the activation"
            self._add(f"{where}: dst_type of the weight", weight.dst_type, allowed)
        return _Block(activation, weight, channel_wise)

    def _activation(self, given: Any, where: str) -> DistillActivation:
        clips: dict[str, float] = {}
        if given.HasField("clip_max_min"):
            both = given.clip_max_min
            clips = {"clip_max": both.clip_max, "clip_min": both.clip_min}
            for key, sign, words in (("clip_max", 1, "above 0"), ("clip_min", -1, "below 0")):
                if both.HasField(key) and not 0 < sign * clips[key] < float("inf"):
                    self._add(f"{where}: {key}", str(clips[key]), f"a finite number {words}")
        return DistillActivation(
            **clips,
            fixed_min=given.fixed_min if given.HasField("fixed_min") else None,
            dst_type=_DST_TYPES[given.dst_type],
        )

    def _entry(
        self,
        layer: LayerFacts,
        common: _Block,
        by_layer: Mapping[str, _Block],
        by_type: Mapping[str, _Block],
    ) -> DistillLayer:
        """Layer > type > global > defaults; the block is taken whole."""
        block, where = common, "the global settings"
        if layer.name in by_layer:
            block, where = by_layer[layer.name], f"{LAYER_LIST} {layer.name!r}"
        elif layer.type in by_type:
            block, where = by_type[layer.type], f"{TYPE_LIST} {layer.type!r}"
        channel_wise = _default_weight(layer).channel_wise
        if block.channel_wise is not None:
            channel_wise = block.channel_wise
        if channel_wise and layer.type == "Linear":
            channel_wise = False
            if block is common:
                self._per_tensor.setdefault(where, []).append(layer.name)
            else:
                self._add(f"{where}: channel_wise", "true", "false for Linear")
        activation = block.activation
        weight = replace(block.weight, channel_wise=channel_wise)
        if weight.dst_type == "INT4" and (obstacle := int4_obstacle(layer)):
            if layer.name in by_layer:
                self._add(f"{where}: dst_type", "INT4", f"INT8; {obstacle}")
            activation = replace(activation, dst_type="INT8")
            weight = replace(weight, dst_type="INT8")
            self._eight_bits.setdefault(where, []).append(f"{layer.name} ({obstacle})")
        return DistillLayer(activation=activation, weight=weight)

    def _add(self, key: str, value: str, allowed: str) -> None:
        problem = Problem("", key, value, allowed)
        if problem not in self.problems:
            self.problems.append(problem)


def _default_weight(layer: LayerFacts) -> DistillWeight:
    return DistillWeight(channel_wise=layer.type == "Conv2d")


def _some(names: Collection[str], shown: int = 10) -> str:
    listed = list(names)
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more
