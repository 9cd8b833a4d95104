"""The quantisation part of a retraining ``.cfg``, resolved to one entry for every layer.

Source: specification chapter 30 sections 3.3 and 11.3 and their "Do better".
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from workbench.engine.files.config_rules import Reader
from workbench.engine.files.layer_rules import LayerFacts, channel_wise_words
from workbench.engine.files.problems import Problem, raise_problems
from workbench.engine.files.retrain_config import (
    RetrainConfig,
    RetrainData,
    RetrainLayer,
    default_weight,
)
from workbench.engine.files.retrain_rules import (
    DATA_KEYS,
    RETRAIN_TYPES,
    data_type_obstacle,
    int4_weight_obstacle,
    pair_problem,
    retrain_model_problems,
)
from workbench.engine.files.text_blocks import shortest
from workbench.engine.files.text_message import required_problems

logger = logging.getLogger("workbench.engine.files")

_PARTS = ("retrain_data_quant_config", "retrain_weight_quant_config")


@dataclass(frozen=True)
class _Settings:
    """What one block of the file says; None: nothing."""

    clip_max: float | None = None
    clip_min: float | None = None
    fixed_min: bool | None = None
    data_type: str | None = None
    algo: str | None = None
    channel_wise: bool | None = None
    weight_type: str | None = None

    def over(self, other: _Settings) -> _Settings:
        """These settings, and those of ``other`` where these say nothing."""
        given = {key: value for key, value in vars(self).items() if value is not None}
        return replace(other, **given)


@dataclass(frozen=True)
class _Override:
    where: str
    settings: _Settings
    quantises: bool


def resolve_retrain_config(
    message: Any,
    layers: Mapping[str, LayerFacts],
    *,
    source: str,
    combined: bool = False,
    compat: bool = False,
    channel_wise_linear: bool = False,
    again: bool = False,
) -> RetrainConfig:
    """The configuration that an ``AMCTRetrainConfig`` means for a model with these layers.

    Each setting of a layer comes from the layer's override, else its type's, else the global part,
    else the default; with ``compat`` one of these sources decides alone, as in the reference, and
    lacking parts have their defaults. A skipped layer stays float unless an override of its own
    (with ``compat``: of its type, too) says otherwise. ``combined``: the message is of combined
    compression, so pruning fields are allowed, a skip may name layers that only pruning knows, and
    without a global part only overridden layers are quantised (section 11.3). ``again``: the
    message was read before, so that the log says nothing a second time.

    Errors: one ``ConfigError`` (``ValueError``) with every problem.
    """
    resolver = _Resolver(message, layers, combined, compat, channel_wise_linear)
    config = resolver.read()
    raise_problems(resolver.problems, source=source)
    for text in () if again else resolver.warnings:
        logger.warning("%s: %s", source, text)
    return config


class _Resolver:
    """Collects the problems of a message, and what the log has to say when there is none."""

    def __init__(
        self,
        message: Any,
        layers: Mapping[str, LayerFacts],
        combined: bool,
        compat: bool,
        channel_wise_linear: bool,
    ) -> None:
        self.problems: list[Problem] = []
        self._said: list[str] = []
        self._lowered: dict[str, list[str]] = {}
        self._message = message
        self._layers = layers
        self._combined = combined
        self._compat = compat
        self._channel_wise_linear = channel_wise_linear

    @property
    def warnings(self) -> list[str]:
        """What was said on the way, and once for all layers each thing that they cannot have."""
        return self._said + [
            f"{text}: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" * (len(names) > 3))
            for text, names in self._lowered.items()
        ]

    def read(self) -> RetrainConfig:
        message = self._message
        self.problems += required_problems(message)
        if not self._combined:
            self.problems += retrain_model_problems(self._layers)
            self._refuse_pruning()
        if not message.batch_num:
            self._add("batch_num", "0", "a whole number above 0")
        common = self._settings(message, "")
        by_type = self._overrides("override_layer_types", "layer_type")
        by_layer = self._overrides("override_layer_configs", "layer_name")
        skipped = self._skipped()
        everywhere = not self._combined or any(message.HasField(part) for part in _PARTS)
        entries = {
            layer.name: self._entry(layer, common, by_type, by_layer, skipped, everywhere)
            for layer in self._layers.values()
            if layer.eligible
        }
        if entries and not self._combined and not any(e.retrain_enable for e in entries.values()):
            self._add("skip lists", "every layer", "at least one layer left")
        forced = message.HasField("fakequant_precision_mode")
        return RetrainConfig(
            batch_num=message.batch_num,
            fakequant_precision_mode="FORCE_FP16_QUANT" if forced else "DEFAULT",
            layers=entries,
        )

    def _refuse_pruning(self) -> None:
        given = ["prune_config"] if self._message.HasField("prune_config") else []
        repeated = ("regular_prune_skip_layers", "regular_prune_skip_types")
        given += [field for field in repeated if getattr(self._message, field)]
        for field in ("override_layer_configs", "override_layer_types"):
            if any(override.HasField("prune_config") for override in getattr(self._message, field)):
                given.append(f"{field}.prune_config")
        for field in given:
            self._add(field, "given", "no pruning here; use create_compressed_retrain_model")

    def _settings(self, message: Any, where: str) -> _Settings:
        """The two parts of a block; what is out of range is noted and left out."""
        found: dict[str, Any] = {}
        if message.retrain_data_quant_config.HasField("ulq_quantize"):
            ulq = message.retrain_data_quant_config.ulq_quantize
            if ulq.HasField("clip_max_min"):
                for name in ("clip_max", "clip_min"):
                    value = shortest(getattr(ulq.clip_max_min, name))
                    if DATA_KEYS[name].fits(value):
                        found[name] = value
                    elif ulq.clip_max_min.HasField(name):
                        self._add(f"{where}{name}", str(value), DATA_KEYS[name].allowed)
            if ulq.HasField("fixed_min"):
                found["fixed_min"] = ulq.fixed_min
            if ulq.HasField("dst_type"):
                found["data_type"] = _type_name(ulq)
                if found["data_type"] == "INT4":
                    self._add(f"{where}ulq_quantize.dst_type", "INT4", "INT8, INT16")
        algo = message.retrain_weight_quant_config.WhichOneof("weights_retrain_algo")
        if algo is not None:
            weight = getattr(message.retrain_weight_quant_config, algo)
            found["algo"] = algo
            if weight.HasField("channel_wise"):
                found["channel_wise"] = weight.channel_wise
            if weight.HasField("dst_type"):
                found["weight_type"] = _type_name(weight)
                if found["weight_type"] == "INT16":
                    self._add(f"{where}{algo}.dst_type", "INT16", "INT4, INT8")
        return _Settings(**found)

    def _overrides(self, field: str, key: str) -> dict[str, _Override]:
        overrides = [o for o in getattr(self._message, field) if o.HasField(key)]
        for name, count in Counter(getattr(o, key) for o in overrides).items():
            if count > 1:
                self._add(field, f"{name!r} {count} times", f"each {key} once")
        found = {}
        for override in overrides:
            name = getattr(override, key)
            quantises = any(override.HasField(part) for part in _PARTS)
            if quantises:
                self._check_named(field, key, name)
            elif not self._combined:
                self._said.append(f"{field} {name!r} says nothing and is ignored")
            where = f"{field} {name!r}: "
            found[name] = _Override(where, self._settings(override, where), quantises)
        return found

    def _check_named(self, field: str, key: str, name: str) -> None:
        if key == "layer_type":
            self._check_types(field, [name])
        elif (layer := self._layers.get(name)) is None or not layer.eligible:
            self._unknown_layer(field, name)

    def _skipped(self) -> set[str]:
        message = self._message
        for field in ("skip_layers", "quant_skip_layers", "skip_layer_types", "quant_skip_types"):
            given = list(getattr(message, field))
            for name in [name for name, count in Counter(given).items() if count > 1]:
                self._said.append(f"{field} names {name!r} more than once")
            # In combined compression the shared lists may name what only pruning can handle.
            if self._combined and not field.startswith("quant_"):
                continue
            if field.endswith("types"):
                self._check_types(field, given)
                continue
            for name in dict.fromkeys(given):
                layer = self._layers.get(name)
                if layer is None or (not layer.eligible and layer.type not in RETRAIN_TYPES):
                    self._unknown_layer(field, name)
        names = {*message.skip_layers, *message.quant_skip_layers}
        types = {*message.skip_layer_types, *message.quant_skip_types}
        of_type = {name for name, layer in self._layers.items() if layer.type in types}
        return names | of_type

    def _check_types(self, field: str, types: Iterable[str]) -> None:
        for kind in dict.fromkeys(types):
            if kind not in RETRAIN_TYPES:
                self._add(field, repr(kind), ", ".join(RETRAIN_TYPES))

    def _unknown_layer(self, field: str, name: str) -> None:
        layer = self._layers.get(name)
        eligible = [n for n, facts in self._layers.items() if facts.eligible]
        allowed = (
            f"layers that can be trained; {layer.reason}"
            if layer is not None
            else Reader.names(name, eligible)
        )
        self._add(field, repr(name), allowed)

    def _entry(
        self,
        layer: LayerFacts,
        common: _Settings,
        by_type: Mapping[str, _Override],
        by_layer: Mapping[str, _Override],
        skipped: Collection[str],
        everywhere: bool,
    ) -> RetrainLayer:
        own, of_type = by_layer.get(layer.name), by_type.get(layer.type)
        enabled = self._enabled(layer, own, of_type, skipped, everywhere)
        sources = [o for o in (own, of_type) if o is not None and (self._compat or o.quantises)]
        settings = common
        if self._compat and sources:
            settings = sources[0].settings
        elif not self._compat:
            for override in reversed(sources):
                settings = override.settings.over(settings)
        explicit = own is not None and own.settings.channel_wise is True
        return self._layer(layer, settings, enabled, own.where if own and explicit else "")

    def _enabled(
        self,
        layer: LayerFacts,
        own: _Override | None,
        of_type: _Override | None,
        skipped: Collection[str],
        everywhere: bool,
    ) -> bool:
        listed = layer.name in skipped
        if self._compat and not self._combined:
            return own is not None or of_type is not None or not listed
        if own is not None and own.quantises:
            if listed:
                self._said.append(
                    f"the layer {layer.name} is skipped and has an override in "
                    "override_layer_configs; the override decides, it is quantised"
                )
            return True
        if of_type is not None and of_type.quantises:
            return self._compat or not listed
        return everywhere and not listed

    def _layer(
        self, layer: LayerFacts, settings: _Settings, enabled: bool, explicit: str
    ) -> RetrainLayer:
        """``explicit``: where the layer itself asks for ``channel_wise``; '' when it does not."""
        default = default_weight(layer, channel_wise_linear=self._channel_wise_linear)
        channel_wise = settings.channel_wise
        if channel_wise and not default.channel_wise:
            words = channel_wise_words(layer.type)
            if explicit:
                self._add(f"{explicit}channel_wise", "true", words, layer.name)
            else:
                self._lowered.setdefault(f"channel_wise is {words}", []).append(layer.name)
            channel_wise = False
        weight_type = settings.weight_type or default.dst_type
        if weight_type == "INT4" and (words := int4_weight_obstacle(layer)):
            text = f"weights of INT8 instead of INT4 ({words})"
            self._lowered.setdefault(text, []).append(layer.name)
            weight_type = "INT8"
        data_type = settings.data_type or "INT8"
        obstacle = data_type_obstacle(layer, data_type) or pair_problem(data_type, weight_type)
        if obstacle:
            self._add("dst_type", f"{data_type}, weights {weight_type}", obstacle, layer.name)
        return RetrainLayer(
            enabled,
            RetrainData(
                clip_max=settings.clip_max,
                clip_min=settings.clip_min,
                fixed_min=settings.fixed_min,
                dst_type=data_type,
            ),
            replace(
                default,
                algo=settings.algo or default.algo,
                channel_wise=default.channel_wise if channel_wise is None else channel_wise,
                dst_type=weight_type,
            ),
        )

    def _add(self, field: str, value: str, allowed: str, layer: str = "") -> None:
        self.problems.append(Problem(layer, field, value, allowed))


def _type_name(message: Any) -> str:
    descriptor = message.DESCRIPTOR.fields_by_name["dst_type"]
    name: str = descriptor.enum_type.values_by_number[message.dst_type].name
    return name
