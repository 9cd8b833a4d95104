"""Files of the automatic channel search: its configuration, and the pruning config it writes.

Source: specification chapter 40 sections 6.1 and 6.6.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import text_format

from workbench.engine.errors import WrongState
from workbench.engine.files.problems import Problem, raise_problems
from workbench.engine.files.proto_schema import message_class
from workbench.engine.files.prune_config import CHANNEL, ChannelPrune, PruneLayer
from workbench.engine.files.reading import read_text
from workbench.engine.files.retrain_text import load_retrain_text_config
from workbench.engine.files.text_blocks import shortest
from workbench.engine.files.text_message import TextConfigError, merge_text

GLOBAL_RATIO = 0.3
"""The global ratio of a written config; no layer takes it, since all are listed."""

_OVERRIDE_FIELDS = frozenset(
    {
        "skip_layers",
        "override_layer_configs",
        "skip_layer_types",
        "override_layer_types",
        "regular_prune_skip_layers",
        "regular_prune_skip_types",
    }
)


class SearchConfigSyntaxError(WrongState, TextConfigError):
    """Text that is no search configuration: ``RuntimeError``, also protobuf's ``ParseError``."""


@dataclass(frozen=True)
class ChannelSearchConfig:
    """``compress_ratio``: how many times fewer bit-operations; ``max_prune_ratio``: of a group.

    ``test_iteration``: samples that the sensitivity looks at; ``override_prune_cfg``: a text config
    of layers that are not searched.
    """

    compress_ratio: float
    ascend_optimized: bool = True
    max_prune_ratio: float = 1.0
    test_iteration: int = 1
    override_prune_cfg: str = ""


@dataclass(frozen=True)
class Overrides:
    """What is decided before the search: settings by layer, and layers to leave alone."""

    settings: Mapping[str, ChannelPrune]
    skipped: frozenset[str]
    message: Any


def read_search_config(path: str | os.PathLike[str]) -> ChannelSearchConfig:
    """Read and check a search configuration.

    Errors: ``FileNotFoundError``; ``RuntimeError`` for text that is none; one ``ValueError`` with
    all that is wrong in it.
    """
    source = os.fspath(path)
    message = message_class("amct.proto", "AMCTProto.AutoChannelPruneConfig")()
    try:
        merge_text(read_text(path, what="search configuration"), message, source=source)
    except TextConfigError as error:
        raise SearchConfigSyntaxError(error.message, where=error.where) from None
    ratio, limit = shortest(message.compress_ratio), shortest(message.max_prune_ratio)
    problems = []
    if not (math.isfinite(ratio) and ratio > 1):
        given = str(ratio) if message.HasField("compress_ratio") else "missing"
        problems.append(Problem("", "compress_ratio", given, "a number above 1"))
    if not 0 < limit <= 1:
        problems.append(Problem("", "max_prune_ratio", str(limit), "above 0, at most 1"))
    if message.test_iteration < 1:
        given = str(message.test_iteration)
        problems.append(Problem("", "test_iteration", given, "a whole number above 0"))
    raise_problems(problems, source=source)
    return ChannelSearchConfig(
        ratio,
        message.ascend_optimized,
        limit,
        message.test_iteration,
        message.override_prune_cfg,
    )


def read_overrides(path: str, layers: Mapping[str, PruneLayer]) -> Overrides:
    """Read ``override_prune_cfg``; '' means none.

    Errors: ``FileNotFoundError``, ``ParseError``; one ``ValueError`` with all that is wrong in it.
    """
    empty = message_class("retrain_config_pytorch.proto", "AMCTPytorchProto.AMCTRetrainConfig")()
    message = load_retrain_text_config(path) if path else empty
    problems = [
        Problem("", field.name, "given", f"only {', '.join(sorted(_OVERRIDE_FIELDS))}")
        for field, _ in message.ListFields()
        if field.name not in _OVERRIDE_FIELDS
    ]
    prunable = {name: layer for name, layer in layers.items() if not layer.channel}
    types = {layer.type for layer in prunable.values()}
    by_layer = _settings(message.override_layer_configs, "layer_name", prunable, problems)
    by_type = _settings(message.override_layer_types, "layer_type", types, problems)
    skipped: set[str] = set()
    for field in ("skip_layers", "regular_prune_skip_layers"):
        skipped |= _known(field, getattr(message, field), prunable, problems)
    for field in ("skip_layer_types", "regular_prune_skip_types"):
        kinds = _known(field, getattr(message, field), types, problems)
        skipped |= {name for name, layer in prunable.items() if layer.type in kinds}
    settings = {
        name: by_type[layer.type] for name, layer in prunable.items() if layer.type in by_type
    }
    settings = {name: s for name, s in (settings | by_layer).items() if name not in skipped}
    if prunable and not problems and not set(prunable) - set(settings) - skipped:
        problems.append(Problem("", "the file", "without a layer to search", "at least one"))
    raise_problems(problems, source=path)
    return Overrides(settings, frozenset(skipped), message)


def format_plan(
    overrides: Overrides,
    removed: Mapping[str, tuple[int, int]],
    skipped: Iterable[str],
    *,
    ascend_optimized: bool,
) -> str:
    """The pruning config of a plan: what the overrides say, and every layer of the search.

    ``removed``: layer -> (channels that go, of how many); ``skipped``: layers that keep all.
    """
    message = type(overrides.message)()
    message.CopyFrom(overrides.message)
    pruner = message.prune_config.filter_pruner.balanced_l2_norm_filter_prune
    pruner.prune_ratio, pruner.ascend_optimized = GLOBAL_RATIO, ascend_optimized
    for name, (gone, count) in removed.items():
        entry = message.override_layer_configs.add(layer_name=name)
        pruner = entry.prune_config.filter_pruner.balanced_l2_norm_filter_prune
        pruner.prune_ratio, pruner.ascend_optimized = gone / count, ascend_optimized
    already = {*message.skip_layers, *message.regular_prune_skip_layers}
    message.regular_prune_skip_layers.extend(name for name in skipped if name not in already)
    text: str = text_format.MessageToString(message, as_utf8=True)
    return text


def _settings(
    overrides: Iterable[Any], key: str, known: Iterable[str], problems: list[Problem]
) -> dict[str, ChannelPrune]:
    found: dict[str, ChannelPrune] = {}
    field = "override_layer_configs" if key == "layer_name" else "override_layer_types"
    names = list(known)
    for override in overrides:
        name = getattr(override, key)
        others = [f.name for f, _ in override.ListFields() if f.name not in (key, "prune_config")]
        pruner = override.prune_config.filter_pruner.balanced_l2_norm_filter_prune
        ratio = shortest(pruner.prune_ratio)
        if others or override.prune_config.WhichOneof("regular_prune_strategy") != CHANNEL:
            problems.append(Problem("", f"{field} {name!r}", "another setting", f"only {CHANNEL}"))
        elif name in found:
            problems.append(Problem("", field, f"{name!r} given more than once", "one entry"))
        elif name not in names:
            problems.append(Problem("", field, repr(name), f"one of {', '.join(names)}"))
        elif not 0 < ratio < 1:
            allowed = "a number above 0 and below 1"
            problems.append(Problem("", f"{field} {name!r} prune_ratio", str(ratio), allowed))
        else:
            found[name] = ChannelPrune(ratio, pruner.ascend_optimized)
    return found


def _known(
    field: str, given: Iterable[str], known: Iterable[str], problems: list[Problem]
) -> set[str]:
    names = list(known)
    allowed = f"one of {', '.join(names)}"
    problems += [Problem("", field, repr(name), allowed) for name in given if name not in names]
    return set(given)


def check_samples(test_iteration: int, samples: int, *, source: str) -> None:
    """Raise ``RuntimeError`` when there are fewer samples than ``test_iteration``."""
    if samples < test_iteration:
        raise WrongState(
            f"test_iteration is {test_iteration}, the data has {samples} samples",
            where=source,
            hint="Give more samples, or lower test_iteration.",
        )
