"""A retraining text config of combined compression, resolved for a model: prune, quantise or both.

Source: specification chapter 30 section 11.3.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from workbench.engine.files.problems import (
    ConfigError,
    ConfigTypeError,
    Problem,
    raise_problems,
)
from workbench.engine.files.prune_config import (
    SELECTIVE_TYPES,
    PruneConfig,
    channel_types,
    configures_pruning,
    configures_quantisation,
    resolve_prune_config,
)
from workbench.engine.files.retrain_config import RetrainConfig
from workbench.engine.files.retrain_resolution import resolve_retrain_config
from workbench.engine.files.retrain_rules import RETRAIN_TYPES
from workbench.engine.flows.prune_layers import prune_layers
from workbench.engine.flows.qat_layers import retrain_layers
from workbench.engine.graph.capture import Captured

logger = logging.getLogger("workbench.engine.flows")

_ONLY_PRUNING = ("regular_prune_skip_layers", "regular_prune_skip_types")
_ONLY_QUANTISATION = ("quant_skip_layers", "quant_skip_types")


@dataclass(frozen=True)
class CompressConfig:
    """What is done to a model; ``quant`` None: nothing is quantised."""

    prune: PruneConfig
    quant: RetrainConfig | None


def resolve_compress_config(
    message: Any,
    captured: Captured,
    *,
    source: str,
    channel_wise_linear: bool = False,
    compat: bool = False,
) -> CompressConfig:
    """What an ``AMCTRetrainConfig`` does to the layers of a captured model.

    A feature is on when its settings are there, globally or in an override. A skip that names a
    layer or a type which only one feature knows counts for that one. Raises one ``ValueError`` with
    the problems of both.
    """
    prunes, quantises = configures_pruning(message), configures_quantisation(message)
    trained = retrain_layers(captured)
    layers = {
        name: replace(layer, quant=name in trained and trained[name].eligible)
        for name, layer in prune_layers(captured, compat=compat).items()
    }
    problems: dict[Problem, None] = {}

    def collected(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (ConfigError, ConfigTypeError) as error:
            problems.update(dict.fromkeys(error.problems))
            return None

    prune = collected(lambda: resolve_prune_config(message, layers, source=source, compat=compat))
    quant = None
    if quantises:
        quant = collected(
            lambda: resolve_retrain_config(
                message,
                trained,
                source=source,
                combined=True,
                compat=compat,
                channel_wise_linear=channel_wise_linear,
            )
        )
    problems.update(dict.fromkeys(_of_other_features(message, prunes, quantises)))
    if quantises:
        known = {name for name, layer in layers.items() if layer.quant}
        if prunes:
            known |= {n for n, layer in layers.items() if not (layer.channel and layer.selective)}
        types = {*RETRAIN_TYPES, *(SELECTIVE_TYPES if prunes else ())}
        types |= set(channel_types(compat=compat)) if prunes else set()
        problems.update(dict.fromkeys(_unknown_skips(message, known, types, problems)))
    if quant is not None and not quant.enabled():
        text = "; ".join(f"{n}: {info.reason or 'skipped'}" for n, info in trained.items())
        problems[Problem("", "quantisation", f"of no layer ({text})", "at least one layer")] = None
    raise_problems(list(problems), source=source)
    return CompressConfig(prune, quant)


def _of_other_features(message: Any, prunes: bool, quantises: bool) -> Iterator[Problem]:
    """Fields of a feature that is off."""
    for on, fields, feature in (
        (prunes, _ONLY_PRUNING, "prune_config"),
        (quantises, _ONLY_QUANTISATION, "a setting of quantisation"),
    ):
        if not on and (prunes or quantises):
            for field in fields:
                if getattr(message, field):
                    names = ", ".join(getattr(message, field))
                    yield Problem("", field, names, f"nothing without {feature}")


def _unknown_skips(
    message: Any, names: set[str], types: set[str], reported: Mapping[Problem, None]
) -> Iterator[Problem]:
    """Entries of the lists for all features that no feature which is on knows."""
    said = {(problem.key, problem.value) for problem in reported}
    for field, known in (("skip_layers", names), ("skip_layer_types", types)):
        for item in dict.fromkeys(getattr(message, field)):
            if item not in known and (field, repr(item)) not in said:
                yield Problem("", field, repr(item), f"one of {', '.join(sorted(known))}")
