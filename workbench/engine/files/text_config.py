"""The text configuration (``.cfg``): protobuf text, resolved to one entry for every layer.

Source: specification chapter 10 section 5.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from workbench.engine.files.config import LayerConfig, QuantConfig
from workbench.engine.files.config_rules import (
    GLOBAL_KEYS,
    Reader,
    model_problems,
    skip_problems,
)
from workbench.engine.files.key_checks import repeated_names
from workbench.engine.files.layer_rules import TYPE_RULES, LayerFacts
from workbench.engine.files.problems import Problem, raise_problems
from workbench.engine.files.proto_schema import message_class
from workbench.engine.files.reading import read_text
from workbench.engine.files.text_blocks import Block, read_block
from workbench.engine.files.text_message import TextConfigError, merge_text, required_problems
from workbench.engine.files.text_resolution import Change, Resolution, type_changes
from workbench.engine.files.text_writing import format_text_config

__all__ = [
    "TextConfig",
    "TextConfigError",
    "format_text_config",
    "load_text_config",
    "parse_text_config",
    "read_text_config",
    "resolve_text_config",
]

logger = logging.getLogger("workbench.engine.files")


@dataclass(frozen=True)
class TextConfig:
    """A text configuration that protobuf could read; ``message`` is an ``AMCTConfig``."""

    source: str
    message: Any


def read_text_config(
    path: str | os.PathLike[str],
    layers: Mapping[str, LayerFacts],
    *,
    modules: Collection[str] = (),
    channel_wise_linear: bool = False,
) -> QuantConfig:
    """The configuration that a ``.cfg`` file means for a model with these layers.

    ``modules``: names of all modules of the model; an override for one that is no layer is ignored
    with a WARNING instead of being an unknown name. ``channel_wise_linear`` as in ``parse_config``.

    Errors: ``FileNotFoundError``; ``TextConfigError`` (``ParseError``, ``ValueError``) naming the
    line; one ``ConfigError`` (``ValueError``) with every other problem. Chapter 10 section 5.
    """
    text = load_text_config(path)
    return resolve_text_config(
        text, layers, modules=modules, channel_wise_linear=channel_wise_linear
    )


def load_text_config(path: str | os.PathLike[str]) -> TextConfig:
    """The file as protobuf reads it, before any model is looked at."""
    return parse_text_config(read_text(path, what="text configuration"), source=str(path))


def parse_text_config(text: str, *, source: str) -> TextConfig:
    message = message_class("amct_config.proto", "AMCTPytorchProto.AMCTConfig")()
    merge_text(text, message, source=source)
    return TextConfig(source, message)


def resolve_text_config(
    text: TextConfig,
    layers: Mapping[str, LayerFacts],
    *,
    modules: Collection[str] = (),
    channel_wise_linear: bool = False,
) -> QuantConfig:
    """``read_text_config`` of a file that is already loaded."""
    reader = _TextReader(text.message, layers, modules, channel_wise_linear)
    config = reader.read()
    raise_problems(reader.problems, source=text.source)
    reader.log(text.source)
    return config


class _TextReader:
    """Collects the problems of a message, and what the log has to say when there is none."""

    def __init__(
        self,
        message: Any,
        layers: Mapping[str, LayerFacts],
        modules: Collection[str],
        channel_wise_linear: bool,
    ) -> None:
        self.problems: list[Problem] = []
        self._message = message
        self._layers = layers
        self._modules = set(modules)
        self._channel_wise_linear = channel_wise_linear
        self._changed: dict[tuple[str, Change], list[str]] = {}
        self._ignored: list[str] = []

    def read(self) -> QuantConfig:
        message = self._message
        self.problems += required_problems(message)
        self.problems += model_problems(self._layers)
        batch_num = GLOBAL_KEYS["batch_num"]
        if not batch_num.fits(message.batch_num):
            self._add("batch_num", str(message.batch_num), batch_num.allowed)
        checks = Reader(self._layers)
        fusion = checks.read_globals({"skip_fusion_layers": list(message.skip_fusion_layers)})
        self.problems += checks.problems
        common = (
            self._block(message.common_config, "common_config")
            if message.HasField("common_config")
            else None
        )
        resolution = Resolution(message.activation_offset, self._channel_wise_linear, common)
        by_type = self._type_blocks()
        by_layer = self._layer_blocks()
        skipped = self._skipped()
        entries = {
            layer.name: self._entry(layer, resolution, by_type, by_layer, skipped)
            for layer in self._layers.values()
            if layer.eligible
        }
        forced = message.HasField("fakequant_precision_mode")
        return QuantConfig(
            batch_num=message.batch_num,
            activation_offset=message.activation_offset,
            do_fusion=message.do_fusion,
            fakequant_precision_mode="FORCE_FP16_QUANT" if forced else "DEFAULT",
            skip_fusion_layers=fusion.get("skip_fusion_layers", ()),
            layers=entries,
        )

    def log(self, source: str) -> None:
        for name in self._ignored:
            logger.warning(
                "%s: override_layer_configs %r is ignored: the module cannot be quantised",
                source,
                name,
            )
        for (where, change), names in self._changed.items():
            logger.log(
                logging.WARNING if change.warn else logging.INFO,
                "%s: %s: %s is %s, allowed: %s; set to %s for %s",
                source,
                where,
                change.field,
                change.value,
                change.allowed,
                change.instead,
                _some(names),
            )

    def _block(self, message: Any, where: str) -> Block:
        block, problems = read_block(message, where)
        self.problems += problems
        return block

    def _type_blocks(self) -> dict[str, Block]:
        overrides = self._message.override_layer_types
        given = [o.layer_type for o in overrides if o.HasField("layer_type")]
        self.problems += repeated_names("override_layer_types", given)
        self._check_types("override_layer_types", given)
        blocks = {}
        for override in overrides:
            kind = override.layer_type
            where = _type_block(kind)
            blocks[kind] = block = self._block(override.calibration_config, where)
            if kind in TYPE_RULES:
                self.problems += [
                    change.problem("", where)
                    for change in type_changes(
                        kind, block, channel_wise_linear=self._channel_wise_linear
                    )
                ]
        return blocks

    def _layer_blocks(self) -> dict[str, Block]:
        overrides = self._message.override_layer_configs
        given = [o.layer_name for o in overrides if o.HasField("layer_name")]
        self.problems += repeated_names("override_layer_configs", given)
        blocks = {}
        for override in overrides:
            if not override.HasField("layer_name"):
                continue
            name = override.layer_name
            layer = self._layers.get(name)
            blocks[name] = self._block(override.calibration_config, _layer_block(name))
            if layer is None and name not in self._modules:
                eligible = [n for n, facts in self._layers.items() if facts.eligible]
                self._add("override_layer_configs", repr(name), Reader.names(name, eligible))
            elif layer is None or not layer.eligible:
                self._ignored.append(name)
        return blocks

    def _skipped(self) -> set[str]:
        names, types = list(self._message.skip_layers), list(self._message.skip_layer_types)
        self.problems += repeated_names("skip_layer_types", types)
        self._check_types("skip_layer_types", types)
        self.problems += skip_problems(names, self._layers)
        eligible = [layer for layer in self._layers.values() if layer.eligible]
        skipped = {*names, *(layer.name for layer in eligible if layer.type in types)}
        left = [layer for layer in eligible if layer.name not in skipped]
        if eligible and not left and not {layer.name for layer in eligible} <= set(names):
            self._add("skip_layer_types", "every layer", "at least one layer left")
        return skipped

    def _check_types(self, field: str, types: Iterable[str]) -> None:
        for kind in dict.fromkeys(types):
            if kind not in TYPE_RULES:
                self._add(field, repr(kind), ", ".join(TYPE_RULES))

    def _entry(
        self,
        layer: LayerFacts,
        resolution: Resolution,
        by_type: Mapping[str, Block],
        by_layer: Mapping[str, Block],
        skipped: Collection[str],
    ) -> LayerConfig:
        """Layer > type > common > nothing; the block is taken whole (section 5.2)."""
        enabled = layer.name not in skipped
        if layer.name in by_layer:
            block, where, strict = by_layer[layer.name], _layer_block(layer.name), True
        elif layer.type in by_type:
            # A layer that is skipped may be the very one that cannot have its type's settings.
            block, where, strict = by_type[layer.type], _type_block(layer.type), enabled
        else:
            block, where, strict = resolution.common or Block(), "common_config", False
        entry, changes = resolution.resolve(layer, block, enabled=enabled)
        of_type = (
            type_changes(layer.type, block, channel_wise_linear=self._channel_wise_linear)
            if where == _type_block(layer.type)
            else []
        )
        for change in changes:
            if change.strict and strict:
                # What no layer of the type can have is reported once, with the type.
                if change.field not in [known.field for known in of_type]:
                    self.problems.append(change.problem(layer.name, where))
            else:
                self._changed.setdefault((where, change), []).append(layer.name)
        return entry

    def _add(self, field: str, value: str, allowed: str) -> None:
        self.problems.append(Problem("", field, value, allowed))


def _type_block(kind: str) -> str:
    return f"override_layer_types {kind!r}"


def _layer_block(name: str) -> str:
    return f"override_layer_configs {name!r}"


def _some(names: list[str], shown: int = 10) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
