"""``auto_channel_prune_search``: which layers lose how many channels for a wanted speed-up.

Source: specification chapter 40 section 6.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from workbench.engine.algorithms.channel_choice import lowest
from workbench.engine.errors import WrongType, WrongValue
from workbench.engine.events import CancelToken, Notice, OnEvent, Progress, check, emit
from workbench.engine.files.atomic import ensure_writable, write_text
from workbench.engine.files.channel_search_config import (
    ChannelSearchConfig,
    Overrides,
    check_samples,
    format_plan,
    read_overrides,
    read_search_config,
)
from workbench.engine.files.sidecar import Sidecar, write_sidecar
from workbench.engine.flows.arguments import check_model, check_path, check_type
from workbench.engine.flows.channel_checks import RemovalCheck
from workbench.engine.flows.channel_surgery import Removal
from workbench.engine.flows.prune import CHOSEN
from workbench.engine.flows.prune_layers import prune_layers
from workbench.engine.flows.prune_plan import plan_removal
from workbench.engine.flows.qat_state import unwrapped
from workbench.engine.graph.capture import Captured, capture
from workbench.engine.graph.channel_groups import ChannelGroup, channel_groups
from workbench.engine.graph.channel_map import channel_map
from workbench.engine.search.channel_plugins import (
    GreedySearch,
    SearchChannelBase,
    SearchGraph,
    SensitivityBase,
    TaylorLossSensitivity,
)
from workbench.engine.search.channel_records import (
    AttrProtoHelper,
    read_sensitivity,
    search_records,
)
from workbench.engine.search.channel_space import SearchSpace, layer_costs

logger = logging.getLogger("workbench.engine.search")

_FUNCTION = "auto_channel_prune_search"


@dataclass(frozen=True)
class ChannelPlan:
    """What a search found.

    ``removed``: producer -> channels that go; ``shares``: producer -> (units that go, of how many),
    of several groups the smaller share; ``sensitivity``: producer -> value of each of its
    channels' units (NaN for channels that are not searched). ``ratio``: bit-operations of the
    original ÷ those of the plan; ``reasons``: why layers are not searched.
    """

    removed: Mapping[str, tuple[int, ...]]
    shares: Mapping[str, tuple[int, int]]
    sensitivity: Mapping[str, tuple[float, ...]]
    ratio: float
    target: float
    reasons: Mapping[str, str]


def auto_channel_prune_search(
    model: nn.Module,
    config: str,
    input_data: list[Any],
    output_cfg: str,
    sensitivity: str | SensitivityBase = "TaylorLossSensitivity",
    search_alg: str | SearchChannelBase = "GreedySearch",
    *,
    through_layer_norm: bool = False,
    compat: bool = False,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> None:
    """Write a pruning config that makes ``model`` cost ``compress_ratio`` times fewer operations.

    ``input_data``: ``[data, label]``, tensors of as many samples; ``data`` may be a tuple of
    tensors for several inputs, ``label`` None for a loss of the output alone. ``output_cfg`` names
    every layer that can be pruned, with its ratio or as one to skip; its sidecar names the chosen
    channels, which ``create_prune_retrain_model`` then takes. ``through_layer_norm``: channels that
    a LayerNorm or RMSNorm normalises over are searched, too; give it to
    ``create_prune_retrain_model`` as well. ``compat``: costs, steps and output of the reference.

    Errors: ``TypeError`` for a wrong argument type; ``FileNotFoundError``; ``ValueError`` for an
    unknown name, a value out of range, a model without a layer to search, and for what a plug-in
    must not return; ``RuntimeError`` for text that is no config, fewer samples than
    ``test_iteration``, and a model that cannot be captured. A target that cannot be met is a
    warning that says what is reached.
    """
    check_model(_FUNCTION, model)
    check_path(_FUNCTION, "config", config)
    check_path(_FUNCTION, "output_cfg", output_cfg)
    check_type(_FUNCTION, "through_layer_norm", through_layer_norm, bool)
    check_type(_FUNCTION, "compat", compat, bool)
    data, label = _data(input_data)
    measure = _chosen("sensitivity", sensitivity, SensitivityBase, TaylorLossSensitivity)
    search = _chosen("search_alg", search_alg, SearchChannelBase, GreedySearch)
    settings = read_search_config(config)
    check_samples(settings.test_iteration, len(data[0]), source=config)
    ensure_writable(output_cfg)
    inner = unwrapped(_FUNCTION, model)
    captured = capture(inner, tuple(x[:1] for x in data), dynamic=False, on_event=on_event)
    check(cancel)
    layers = prune_layers(captured, compat=compat)
    overrides = read_overrides(settings.override_prune_cfg, layers)
    named = tuple(name for name, layer in layers.items() if not layer.channel)
    if not named:
        listed = "; ".join(f"{name}: {layer.channel}" for name, layer in layers.items())
        raise WrongValue(f"the model has no layer that can be pruned ({listed})", where=_FUNCTION)
    plan = search_channels(
        captured,
        settings,
        overrides,
        named,
        (data if len(data) > 1 else data[0], label),
        measure,
        search,
        through_layer_norm=through_layer_norm,
        compat=compat,
        on_event=on_event,
        cancel=cancel,
    )
    text = _text(plan, overrides, named, settings, compat=compat)
    write_text(output_cfg, text, warn_if_exists=True)
    chosen = {name: list(channels) for name, channels in plan.removed.items() if channels}
    options: dict[str, Any] = {"compress_ratio": plan.ratio}
    if not compat:
        options[CHOSEN] = chosen
    write_sidecar(output_cfg, Sidecar(compat=compat, options=options))


def search_channels(
    captured: Captured,
    settings: ChannelSearchConfig,
    overrides: Overrides,
    named: Sequence[str],
    input_data: tuple[Any, Any],
    measure: SensitivityBase,
    search: SearchChannelBase,
    *,
    through_layer_norm: bool = False,
    compat: bool = False,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> ChannelPlan:
    """The search itself, without files; ``named``: the layers that may lose channels."""
    searched = [n for n in named if n not in overrides.settings and n not in overrides.skipped]
    channels = channel_map(captured, through_layer_norm=through_layer_norm)
    found = channel_groups(channels, searched)
    groups, refused = workable_groups(captured, found.groups, cancel=cancel)
    reasons = {**found.reasons, **refused}
    fixed = channel_groups(channels, overrides.settings).groups
    removed_before = [(g, len(_override(captured, g, overrides).units)) for g in fixed]

    def untouched() -> SearchSpace:
        space = SearchSpace(
            groups,
            layer_costs(captured, compat=compat),
            ascend_optimized=settings.ascend_optimized,
            max_prune_ratio=settings.max_prune_ratio,
            swapped=compat,
        )
        for group, units in removed_before:
            space.remove_fixed(group, units)
        return space

    space = untouched()
    if not groups:
        _tell("There is no group of channels to search", reasons, on_event)
        return ChannelPlan({}, {}, {}, space.ratio, settings.compress_ratio, reasons)
    records = search_records(captured, groups)
    for index, record in enumerate(records):
        cost = space.unit_cost(index)
        AttrProtoHelper(record.producer[0]).set_attr_value("bitops", "FLOAT", cost)
    graph = SearchGraph(captured.module, groups, compat, on_event, cancel)
    info = space.graph_info()
    measure.setup_initialization((graph, info), list(input_data), settings.test_iteration)
    measure.get_sensitivity(records)
    author = type(measure).__name__
    values = [read_sensitivity(r, g, author=author) for r, g in zip(records, groups, strict=True)]
    check(cancel)
    emit(on_event, Progress("Searching", 0, 1))
    search.space, search.graph = space, graph
    target = (settings.compress_ratio, settings.ascend_optimized, settings.max_prune_ratio)
    try:
        kept = search.channel_prune_search(info, records, target)
    finally:
        search.space, search.graph = None, None
    gone = _units(kept, groups, author=type(search).__name__)
    final = untouched()
    for index, units in enumerate(gone):
        final.remove(index, len(units))
    emit(on_event, Progress("Searching", 1, 1))
    if final.ratio < settings.compress_ratio:
        _tell(
            f"compress_ratio {settings.compress_ratio:g} cannot be met: {final.ratio:.3f} is the "
            "best that these layers give, and what the written config does. Lower it, raise "
            "max_prune_ratio, or skip fewer layers",
            reasons,
            on_event,
        )
    removed: dict[str, tuple[int, ...]] = {}
    shares: dict[str, tuple[int, int]] = {}
    sensitivity: dict[str, tuple[float, ...]] = {}
    for group, units, value in zip(groups, gone, values, strict=True):
        for member in group.producers:
            share = (len(units), group.size)
            known = shares.setdefault(member.module, share)
            shares[member.module] = min(known, share, key=lambda s: s[0] / s[1])
            before = removed.get(member.module, ())
            removed[member.module] = tuple(sorted({*before, *member.channels(units)}))
            shown = np.append(value, np.nan)[member.units]
            if member.module in sensitivity:
                shown = np.where(np.isnan(shown), sensitivity[member.module], shown)
            sensitivity[member.module] = tuple(float(v) for v in shown)
    return ChannelPlan(removed, shares, sensitivity, final.ratio, settings.compress_ratio, reasons)


def _data(input_data: Any) -> tuple[tuple[Tensor, ...], Any]:
    """The inputs, each with the samples first, and the label."""
    check_type(_FUNCTION, "input_data", input_data, list, tuple)
    if len(input_data) != 2:
        raise WrongValue(
            f"input_data has {len(input_data)} entries; allowed: [data, label]", where=_FUNCTION
        )
    data, label = input_data
    inputs = data if isinstance(data, tuple) else (data,)
    tensors = [*inputs, *([] if label is None else [label])]
    if not inputs or not all(isinstance(x, Tensor) and x.dim() for x in tensors):
        raise WrongType(
            "input_data must hold tensors with samples along their first dimension: [data, label]",
            where=_FUNCTION,
        )
    counts = {len(x) for x in tensors}
    if len(counts) > 1:
        raise WrongValue(
            f"data and label have {' and '.join(str(len(x)) for x in tensors)} samples; allowed: "
            "as many of each",
            where=_FUNCTION,
        )
    return inputs, label


def _chosen(argument: str, given: Any, base: type[Any], built_in: type[Any]) -> Any:
    """The plug-in that an argument means."""
    if isinstance(given, base):
        return given
    if isinstance(given, str):
        if given == built_in.__name__:
            return built_in()
        raise WrongValue(
            f"{argument} is {given!r}; allowed: {built_in.__name__!r}, or a {base.__name__}",
            where=_FUNCTION,
        )
    raise WrongType(
        f"{argument} must be str or {base.__name__}, it is {type(given).__name__}", where=_FUNCTION
    )


def workable_groups(
    captured: Captured, groups: Sequence[ChannelGroup], *, cancel: CancelToken | None = None
) -> tuple[tuple[ChannelGroup, ...], dict[str, str]]:
    """The groups that the model can lose channels of, and why the others cannot."""
    trial = [Removal(g, lowest(np.zeros(g.size), g.cells, g.stride)) for g in groups]
    refused = RemovalCheck(captured, cancel=cancel).accept(trial).refused
    stopped = {id(removal.group) for removal, _ in refused}
    reasons = {m.module: why for removal, why in refused for m in removal.group.producers}
    return tuple(g for g in groups if id(g) not in stopped), reasons


def _override(captured: Captured, group: ChannelGroup, overrides: Overrides) -> Removal:
    return plan_removal(captured.module, group, overrides.settings, compat=False)


def _units(
    kept: Any, groups: Sequence[ChannelGroup], *, author: str
) -> tuple[tuple[int, ...], ...]:
    """What a search's answer takes from each group; ``ValueError`` when it cannot be done."""
    where = f"{author}.channel_prune_search()"
    if not isinstance(kept, Mapping):
        raise WrongType(
            f"returned {type(kept).__name__}; allowed: a dict of 0/1 lists by producer", where=where
        )
    found = []
    for group in groups:
        gone: set[int] = set()
        counts = {}
        for member in group.producers:
            flags = kept.get(member.module)
            if flags is None:
                raise WrongValue(f"says nothing of producer {member.module}", where=where)
            if len(flags) != len(member.units) or any(flag not in (0, 1) for flag in flags):
                raise WrongValue(
                    f"gives {len(flags)} entries for producer {member.module}; allowed: "
                    f"{len(member.units)} entries, each 0 or 1",
                    where=where,
                )
            units = [
                int(u) for u, flag in zip(member.units, flags, strict=True) if u >= 0 and not flag
            ]
            counts[member.module] = len(units)
            # Coupled producers must agree on the number only: the first one says which.
            known = {int(u) for other in group.producers[: len(counts) - 1] for u in other.units}
            gone.update(unit for unit in units if unit not in known)
        _check_share(group, gone, counts, where=where)
        found.append(tuple(sorted(gone)))
    return tuple(found)


def _check_share(
    group: ChannelGroup, gone: set[int], counts: Mapping[str, int], *, where: str
) -> None:
    names = ", ".join(counts)
    for member in group.producers:
        expected = len(member.channels(gone))
        if counts[member.module] != expected:
            raise WrongValue(
                f"removes {counts[member.module]} channels of {member.module}; allowed: "
                f"{expected}, as many as fit the others of its group ({names})",
                where=where,
            )
    shares = {len(gone & set(cell)) / len(cell) for cell in group.cells}
    if len(shares) > 1 or len(gone) % group.stride:
        raise WrongValue(
            f"removes {len(gone)} of the group {names}; allowed: multiples of {group.stride}, the "
            "same share of each of its parts",
            where=where,
        )
    if len(gone) == group.size:
        raise WrongValue(f"leaves no channel of {names}; allowed: at least one", where=where)


def _text(
    plan: ChannelPlan,
    overrides: Overrides,
    named: Sequence[str],
    settings: ChannelSearchConfig,
    *,
    compat: bool,
) -> str:
    removed = {name: share for name, share in plan.shares.items() if share[0]}
    listed = plan.shares if compat else named
    skipped = [n for n in listed if n not in removed and n not in overrides.settings]
    return format_plan(overrides, removed, skipped, ascend_optimized=settings.ascend_optimized)


def _tell(message: str, reasons: Mapping[str, str], on_event: OnEvent | None) -> None:
    """A warning with the layers that are not searched."""
    lines = "".join(f"\n  {name}: {reason}" for name, reason in reasons.items())
    logger.warning("%s.%s", message, lines)
    emit(on_event, Notice(f"{message}.{lines}"))
