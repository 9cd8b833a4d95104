"""Other settings of a layer that a search may try beside the configuration's own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from workbench.engine.errors import WrongValue
from workbench.engine.files.config import LayerConfig, QuantConfig
from workbench.engine.files.layer_rules import (
    LayerFacts,
    rules_for,
    weight_bits_obstacle,
)
from workbench.engine.files.record import Record
from workbench.engine.search.judging import Choice
from workbench.engine.search.models import Factors

CHANGES = ("int4", "int8", "ifmr", "hfmg", "arq", "ada", "per-tensor", "per-channel")
"""Single changes: weight bits, activation algorithm, weight algorithm, weight scales."""

_WEIGHT_ALGORITHMS = {"arq": "arq_quantize", "ada": "ada_quantize"}


def check_variants(variants: Sequence[str]) -> None:
    """Raise ``ValueError`` unless each is one of ``CHANGES`` or several joined by "+"."""
    for variant in variants:
        unknown = [part for part in variant.split("+") if part not in CHANGES]
        if unknown:
            raise WrongValue(
                f"{variant!r} has the unknown part {unknown[0]!r}; allowed: "
                f"{', '.join(CHANGES)}, and several joined by '+'",
                where="variants",
            )


def changed(settings: LayerConfig, layer: LayerFacts, variant: str) -> LayerConfig | None:
    """The layer's settings under ``variant``.

    None: the layer does not allow it, or part of it is how the layer is configured anyway.
    """
    for part in variant.split("+"):
        following = _changed(settings, layer, part)
        if following is None or following == settings:
            return None
        settings = following
    return settings


def _changed(settings: LayerConfig, layer: LayerFacts, change: str) -> LayerConfig | None:
    if change in ("ifmr", "hfmg"):
        return replace(settings, activation=replace(settings.activation, act_algo=change))
    weight = settings.weight
    if weight is None or not layer.has_weight:
        return None
    rules = rules_for(layer)
    if change in ("int4", "int8"):
        bits = int(change.removeprefix("int"))
        if weight_bits_obstacle(layer, bits):
            return None
        weight = replace(weight, num_bits=bits)
    elif change in _WEIGHT_ALGORITHMS:
        if change == "ada" and not rules.ada:
            return None
        weight = replace(weight, wts_algo=_WEIGHT_ALGORITHMS[change])
    else:
        # What is per channel already stays allowed: a Linear may have opted in.
        if change == "per-channel" and not (rules.channel_wise or weight.channel_wise):
            return None
        weight = replace(weight, channel_wise=change == "per-channel")
    return replace(settings, weight=weight)


def with_choices(
    config: QuantConfig, layers: Mapping[str, LayerFacts], choices: Mapping[str, Choice]
) -> QuantConfig:
    """The configuration with each choice made; layers that are not named stay as they are."""
    entries = dict(config.layers)
    for name, choice in choices.items():
        settings = entries[name]
        if choice.variant:
            found = changed(settings, layers[name], choice.variant)
            if found is None:
                raise WrongValue(f"there is no variant {choice.variant!r}", where=f"layer {name}")
            settings = found
        entries[name] = replace(settings, quant_enable=choice.quantize)
    return replace(config, layers=entries)


def entry_of(name: str, variant: str) -> str:
    """The name of a layer's variant in the record of ``VariantFactors``."""
    # Two dots in a row cannot be part of a module's name.
    return f"{name}..{variant}" if variant else name


@dataclass(frozen=True)
class VariantFactors(Factors):
    """Factors of several variants of each layer: one entry of the record for each of them.

    A trial quantises with one entry a layer at most. ``entries``: entry to layer and variant.
    """

    entries: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def selected(self, names: Collection[str]) -> Factors:
        chosen = {self.entries[name][0]: name for name in names}
        layers = {layer: self.record.layers[name] for layer, name in chosen.items()}
        tuned = {layer: self.tuned[name] for layer, name in chosen.items() if name in self.tuned}
        return Factors(self.folded, Record(layers), tuned)

    def quantized(self, names: Collection[str]) -> nn.Module:
        factors = self.selected(names)
        return factors.quantized(tuple(factors.record.layers))

    def key(self, choices: Mapping[str, Choice]) -> frozenset[str]:
        """The entries that a configuration leaves out: how a runner names its trials."""
        chosen = {entry_of(n, c.variant) for n, c in choices.items() if c.quantize}
        return frozenset(self.entries) - chosen

    def choices(self, key: frozenset[str]) -> dict[str, Choice]:
        """The inverse of ``key``; layers in the order of the entries."""
        found = {layer: Choice(False) for layer, _ in self.entries.values()}
        for entry, (layer, variant) in self.entries.items():
            if entry not in key:
                found[layer] = Choice(True, variant)
        return found


def join(
    folded: nn.Module, parts: Iterable[tuple[str, Factors]], layers: Sequence[str]
) -> VariantFactors:
    """``parts``: (variant, factors of the layers that have it), the configuration's own as ""."""
    parts = list(parts)
    record, tuned, entries = {}, {}, {}
    for layer in layers:
        for variant, factors in parts:
            if layer in factors.record.layers:
                entry = entry_of(layer, variant)
                entries[entry] = (layer, variant)
                record[entry] = factors.record.layers[layer]
                if layer in factors.tuned:
                    tuned[entry] = factors.tuned[layer]
    return VariantFactors(folded, Record(record), tuned, entries)
