"""The prune part of a retraining text config: which layer loses channels, which becomes 2:4.

Source: specification chapter 40 section 2.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import text_format

from workbench.engine.files.problems import Problem, raise_problems
from workbench.engine.files.proto_schema import message_class
from workbench.engine.files.retrain_rules import RETRAIN_TYPES
from workbench.engine.files.text_blocks import shortest
from workbench.engine.files.text_message import required_problems

logger = logging.getLogger("workbench.engine.files")

CHANNEL = "filter_pruner"
SELECTIVE = "n_out_of_m_pruner"

CHANNEL_TYPES = (
    "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Linear",
)  # fmt: skip
"""Types whose output channels can be removed; with ``compat`` Conv2d and Linear only."""

SELECTIVE_TYPES = ("Conv2d", "Linear", "ConvTranspose2d")
"""Types that 2:4 sparsity handles."""

_COMPAT_CHANNEL_TYPES = ("Conv2d", "Linear")


@dataclass(frozen=True)
class ChannelPrune:
    """A layer that loses ``ratio`` of its output channels (balanced_l2_norm_filter_prune)."""

    ratio: float
    ascend_optimized: bool = True


@dataclass(frozen=True)
class SelectivePrune:
    """A layer that keeps 2 of 4 weights (l1_selective_prune); masks anew every ``update_freq``."""

    update_freq: int = 0


Prune = ChannelPrune | SelectivePrune


@dataclass(frozen=True)
class PruneLayer:
    """What a configuration must know of a layer.

    ``channel`` and ``selective``: why it cannot be named for that mode, '' when it can; ``quant``:
    whether quantisation-aware training handles it.
    """

    name: str
    type: str
    channel: str
    selective: str
    quant: bool = False

    def obstacle(self, mode: str) -> str:
        return self.channel if mode == CHANNEL else self.selective


@dataclass(frozen=True)
class PruneConfig:
    """``layers``: what is done to each layer that something is done to."""

    layers: Mapping[str, Prune]

    def channel(self) -> dict[str, ChannelPrune]:
        return {n: p for n, p in self.layers.items() if isinstance(p, ChannelPrune)}

    def selective(self) -> dict[str, SelectivePrune]:
        return {n: p for n, p in self.layers.items() if isinstance(p, SelectivePrune)}


def configures_pruning(message: Any) -> bool:
    """Whether a retraining config has anything about pruning."""
    overrides = [*message.override_layer_configs, *message.override_layer_types]
    return message.HasField("prune_config") or any(o.HasField("prune_config") for o in overrides)


def configures_quantisation(message: Any) -> bool:
    """Whether a retraining config has anything about quantisation-aware training."""
    fields = ("retrain_data_quant_config", "retrain_weight_quant_config")
    overrides = [*message.override_layer_configs, *message.override_layer_types]
    return any(part.HasField(field) for part in (message, *overrides) for field in fields)


def channel_types(*, compat: bool) -> tuple[str, ...]:
    return _COMPAT_CHANNEL_TYPES if compat else CHANNEL_TYPES


def resolve_prune_config(
    message: Any, layers: Mapping[str, PruneLayer], *, source: str, compat: bool = False
) -> PruneConfig:
    """What an ``AMCTRetrainConfig`` does to each of these layers.

    A layer's own override beats its type's, which beats ``prune_config``; a skip beats them all.
    Raises one ``ValueError`` with all problems (section 2.4); a message with quantisation only
    gives an empty configuration.
    """
    reader = _Reader(message, layers, compat)
    config = reader.read()
    raise_problems(reader.problems, source=source)
    return config


def modes_named_twice(text: str) -> bool:
    """Whether a ``prune_config`` block of a text config names both modes: the last one wins."""
    tokens = re.findall(r'"(?:\\.|[^"\\\n])*"|#[^\n]*|[{}<>]|[A-Za-z_]\w*', text)
    stack: list[set[str]] = [set()]
    last = ""
    for token in tokens:
        if token in "{<":
            stack[-1].add(last)
            stack.append(set())
        elif token in "}>" and len(stack) > 1:
            if {CHANNEL, SELECTIVE} <= stack.pop():
                return True
        elif not token.startswith(("#", '"')):
            last = token
    return False


def format_prune_config(ratios: Mapping[str, float], *, ascend_optimized: bool = False) -> str:
    """The text config in which exactly these layers lose channels: each by an override."""
    name = "AMCTPytorchProto.AMCTRetrainConfig"
    message: Any = message_class("retrain_config_pytorch.proto", name)()
    for layer, ratio in ratios.items():
        entry = message.override_layer_configs.add(layer_name=layer)
        pruner = entry.prune_config.filter_pruner.balanced_l2_norm_filter_prune
        pruner.prune_ratio, pruner.ascend_optimized = ratio, ascend_optimized
    text: str = text_format.MessageToString(message, as_utf8=True)
    return text


class _Reader:
    """Reads the message and collects its problems on the way."""

    def __init__(self, message: Any, layers: Mapping[str, PruneLayer], compat: bool) -> None:
        self.problems: list[Problem] = []
        self._message = message
        self._layers = layers
        self._types = {CHANNEL: channel_types(compat=compat), SELECTIVE: SELECTIVE_TYPES}

    def read(self) -> PruneConfig:
        message = self._message
        self.problems += required_problems(message)
        prunes, quantises = configures_pruning(message), configures_quantisation(message)
        if not prunes and not quantises:
            self._add("the file", "without a setting", "prune_config, or settings of quantisation")
            return PruneConfig({})
        if not prunes:
            return PruneConfig({})
        common, mode = None, ""
        if message.HasField("prune_config"):
            mode, common = self._prune(message.prune_config, "prune_config", "")
        by_layer = self._overrides("override_layer_configs", "layer_name")
        by_type = self._overrides("override_layer_types", "layer_type")
        modes = {m for m, _ in (*by_layer.values(), *by_type.values()) if m} | {mode} - {""}
        if modes and not any(self._named(m) for m in modes):
            listed = "; ".join(f"{n}: {self._why(n, modes)}" for n in self._layers)
            self._add("model", f"without a layer that can be pruned ({listed})", "at least one")
            return PruneConfig({})
        skipped = self._skipped(mode, quantises)
        self._check_names(by_layer)
        self._check_types(by_type)
        entries = self._resolve(common, mode, by_layer, by_type, skipped)
        if not entries and not self.problems:
            self._add("what the skip lists leave", "no layer to prune", "at least one layer")
        return PruneConfig(entries)

    def _prune(self, block: Any, where: str, layer: str) -> tuple[str, Prune | None]:
        """The mode of a ``PruneConfig`` block and its setting; None when it is not usable."""
        mode = block.WhichOneof("regular_prune_strategy")
        if mode is None:
            self._add(where, "empty", f"{CHANNEL} or {SELECTIVE}", layer)
            return "", None
        member = getattr(block, mode)
        if mode == SELECTIVE:
            if member.WhichOneof("n_out_of_m_pruner_algo") is None:
                self._add(f"{where}.{mode}", "empty", "l1_selective_prune", layer)
                return mode, None
            return mode, SelectivePrune(member.l1_selective_prune.update_freq)
        if member.WhichOneof("filter_pruner_algo") is None:
            self._add(f"{where}.{mode}", "empty", "balanced_l2_norm_filter_prune", layer)
            return mode, None
        pruner = member.balanced_l2_norm_filter_prune
        if not pruner.HasField("prune_ratio"):
            return mode, None
        ratio = shortest(pruner.prune_ratio)
        if not 0 < ratio < 1:
            self._add(f"{where}.prune_ratio", str(ratio), "a number above 0 and below 1", layer)
            return mode, None
        return mode, ChannelPrune(ratio, pruner.ascend_optimized)

    def _overrides(self, field: str, key: str) -> dict[str, tuple[str, Prune | None]]:
        found: dict[str, tuple[str, Prune | None]] = {}
        for override in getattr(self._message, field):
            name = getattr(override, key)
            if not override.HasField(key):
                continue
            if name in found:
                self._add(field, f"{name!r} given more than once", "one entry for each")
            mode, setting = "", None
            if override.HasField("prune_config"):
                mode, setting = self._prune(override.prune_config, f"{field} {name!r}", name)
            found[name] = (mode, setting)
        return found

    def _skipped(self, mode: str, quantises: bool) -> set[str]:
        """Names of the layers that the lists switch off; the lists' own problems are noted."""
        message = self._message
        lists = {
            "skip_layers": (message.skip_layers, True),
            "regular_prune_skip_layers": (message.regular_prune_skip_layers, False),
            "skip_layer_types": (message.skip_layer_types, True),
            "regular_prune_skip_types": (message.regular_prune_skip_types, False),
        }
        if not mode:
            for field, (given, every_feature) in lists.items():
                if given and not (every_feature and quantises):
                    self._add(field, ", ".join(given), "nothing while there is no prune_config")
            return set()
        names = set(self._named(mode))
        for field, (given, every_feature) in lists.items():
            for item in dict.fromkeys(given):
                if len([g for g in given if g == item]) > 1:
                    logger.warning("%s holds %r more than once", field, item)
                quantised = every_feature and quantises
                if "types" in field:
                    if not (quantised and item in RETRAIN_TYPES):
                        self._check_type(field, item, mode)
                elif item not in names and not (quantised and self._quant(item)):
                    self._add(field, repr(item), self._say(item, mode))
        skipped = {*message.skip_layers, *message.regular_prune_skip_layers}
        types = {*message.skip_layer_types, *message.regular_prune_skip_types}
        return skipped | {n for n, layer in self._layers.items() if layer.type in types}

    def _check_names(self, by_layer: Mapping[str, tuple[str, Prune | None]]) -> None:
        for name, (mode, _) in by_layer.items():
            if mode and name not in self._named(mode):
                self._add("override_layer_configs", repr(name), self._say(name, mode))

    def _check_types(self, by_type: Mapping[str, tuple[str, Prune | None]]) -> None:
        for kind, (mode, _) in by_type.items():
            if mode:
                self._check_type("override_layer_types", kind, mode)

    def _check_type(self, field: str, kind: str, mode: str) -> None:
        if kind not in self._types[mode]:
            self._add(field, repr(kind), f"{', '.join(self._types[mode])} with {mode}")

    def _resolve(
        self,
        common: Prune | None,
        mode: str,
        by_layer: Mapping[str, tuple[str, Prune | None]],
        by_type: Mapping[str, tuple[str, Prune | None]],
        skipped: Collection[str],
    ) -> dict[str, Prune]:
        entries: dict[str, Prune] = {}
        for name, layer in self._layers.items():
            # A layer's override hides its type's even when it says nothing about pruning.
            own = by_layer.get(name) or by_type.get(layer.type) or ("", None)
            chosen, setting = own if own[0] else (mode, common)
            if setting is not None and name not in skipped and not layer.obstacle(chosen):
                entries[name] = setting
        return entries

    def _named(self, mode: str) -> list[str]:
        return [name for name, layer in self._layers.items() if not layer.obstacle(mode)]

    def _quant(self, name: str) -> bool:
        return name in self._layers and self._layers[name].quant

    def _say(self, name: str, mode: str) -> str:
        if name in self._layers and self._layers[name].obstacle(mode):
            return f"another layer; {self._layers[name].obstacle(mode)}"
        close = difflib.get_close_matches(name, self._named(mode), n=3)
        return "names of layers that can be pruned" + (f": {', '.join(close)}" if close else "")

    def _why(self, name: str, modes: Iterable[str]) -> str:
        return next(filter(None, (self._layers[name].obstacle(mode) for mode in sorted(modes))), "")

    def _add(self, key: str, value: str, allowed: str, layer: str = "") -> None:
        self.problems.append(Problem(layer, key, value, allowed))
