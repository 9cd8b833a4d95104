"""Factors and errors of every variant of every layer, from one calibration a variant."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench.engine.events import check
from workbench.engine.search.costs import Options
from workbench.engine.search.judging import Choice
from workbench.engine.search.sensitivity import CosineSimilaritySensitivity, EndToEndSensitivity
from workbench.engine.search.setup import SearchSetup
from workbench.engine.search.statistics import Statistics
from workbench.engine.search.variants import VariantFactors, changed, join, with_choices

log = logging.getLogger("workbench.engine.search")


@dataclass(frozen=True)
class VariantTable:
    """``options``: what each layer may be; ``errors``: 1 - cosine of the layer alone, so chosen."""

    factors: VariantFactors
    options: Options
    errors: Mapping[tuple[str, Choice], float]


def variant_table(
    setup: SearchSetup, statistics: Statistics, layers: Sequence[str], variants: Sequence[str]
) -> VariantTable:
    """Calibrate each variant once, in all layers that allow it, the others as configured.

    A trial mixes the entries of these records, so that it costs an evaluation only. A layer's
    weight scales do not depend on other layers at all. Its activation scale does, but only as far
    as the errors of the weights before it change its input; the accepted configuration is
    calibrated as it is anyway.
    """
    own = statistics.prepare()
    parts = [("", own)]
    names = {name: [""] for name in layers}
    errors: dict[tuple[str, Choice], float] = {}
    for name, error in _own_errors(setup, statistics, layers).items():
        errors[name, Choice()] = error
    for variant in dict.fromkeys(variants):
        allowed = [
            name
            for name in layers
            if changed(setup.config.layers[name], setup.captured.layers[name], variant)
        ]
        if not allowed:
            log.info("no layer can be %s, or all are", variant)
            continue
        check(setup.cancel)
        choices = dict.fromkeys(allowed, Choice(True, variant))
        factors, found = statistics.alternative(
            with_choices(setup.config, setup.captured.layers, choices)
        )
        parts.append((variant, factors.selected(allowed)))
        for name in allowed:
            names[name].append(variant)
            errors[name, Choice(True, variant)] = found[name]
    options = {
        name: (Choice(False), *(Choice(True, variant) for variant in known))
        for name, known in names.items()
    }
    return VariantTable(join(own.folded, parts, layers), options, errors)


def _own_errors(
    setup: SearchSetup, statistics: Statistics, layers: Sequence[str]
) -> Mapping[str, float]:
    """From the ranking when that is made of cosines; otherwise calibrated once more."""
    measure = setup.sensitivity
    cosines = isinstance(measure, CosineSimilaritySensitivity)
    if cosines and not isinstance(measure, EndToEndSensitivity):
        values = statistics.ranking(tuple(layers))
        return {name: 2.0 * (1.0 - values[name]) for name in layers}
    return statistics.alternative(setup.config)[1]
