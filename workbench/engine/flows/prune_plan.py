"""Which channels of which groups go: the decision before anything is removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from workbench.engine.algorithms.channel_choice import (
    balanced_scores,
    filter_rows,
    lowest,
    removed_count,
    unit_norms,
)
from workbench.engine.files.prune_config import ChannelPrune
from workbench.engine.flows.channel_surgery import Removal
from workbench.engine.graph.channel_groups import ChannelGroup, Member

Choice = Mapping[str, Sequence[int]]
"""Producer -> its channels that go, as a search chose them."""


@dataclass(frozen=True)
class GroupReport:
    """What was decided for one group of coupled channels.

    ``ratio``: the smallest of its producers'; ``removed``: channels that each producer loses.
    ``note``: why it loses none, or what was refused.
    """

    producers: tuple[str, ...]
    members: tuple[str, ...]
    channels: int
    ratio: float
    aligned: bool
    removed: Mapping[str, tuple[int, ...]]
    note: str = ""


@dataclass(frozen=True)
class PruneReport:
    """Every group in execution order, and for each producer in no group the reason."""

    groups: tuple[GroupReport, ...]
    reasons: Mapping[str, str]

    def blocked(self) -> dict[str, str]:
        """Producers that lose nothing, each with its reason."""
        notes = {p: group.note for group in self.groups if group.note for p in group.producers}
        return notes | dict(self.reasons)


def plan_removal(
    module: nn.Module,
    group: ChannelGroup,
    settings: Mapping[str, ChannelPrune],
    *,
    compat: bool,
    choice: Choice | None = None,
) -> Removal:
    """The units that ``group`` loses: how many its settings say, which ones BalancedL2Norm does.

    ``choice`` decides which where it names as many.
    """
    count = group_count(group, settings)
    if not count:
        return Removal(group, ())
    chosen = chosen_units(group, choice or {})
    if len(chosen) == count:
        return Removal(group, chosen)
    return Removal(group, lowest(norm_scores(module, group, compat=compat), group.cells, count))


def norm_scores(
    module: nn.Module, group: ChannelGroup, *, compat: bool = False
) -> NDArray[np.float64]:
    """BalancedL2Norm's score of each unit of ``group``: the lower, the sooner it goes."""
    modules = dict(module.named_modules())
    norms = [
        unit_norms(
            filter_rows(getattr(modules[m.module], m.name), m.axis, m.groups), m.units, group.size
        )
        for m in group.producers
    ]
    return balanced_scores(norms, compat=compat)


def group_count(group: ChannelGroup, settings: Mapping[str, ChannelPrune]) -> int:
    """How many units of ``group`` go."""
    ratio, aligned = group_setting(group, settings)
    return removed_count(
        group.size,
        ratio,
        aligned=aligned,
        stride=group.stride,
        unit_channels=group.unit_channels,
    )


def group_setting(group: ChannelGroup, settings: Mapping[str, ChannelPrune]) -> tuple[float, bool]:
    """The group's ratio (its producers' smallest), and whether any of them wants alignment."""
    own = [settings[m.module] for m in group.producers]
    return min(s.ratio for s in own), any(s.ascend_optimized for s in own)


def chosen_units(group: ChannelGroup, choice: Choice) -> tuple[int, ...]:
    """Units all of whose channels a choice names, in every producer that it speaks of."""
    found: set[int] | None = None
    for member in group.producers:
        if member.module not in choice:
            continue
        named = np.isin(np.arange(len(member.units)), list(choice[member.module]))
        inside = member.units >= 0
        units = set(member.units[inside & named].tolist())
        units -= set(member.units[inside & ~named].tolist())
        absent = set(range(group.size)) - set(member.units[inside].tolist())
        found = units | absent if found is None else found & (units | absent)
    return tuple(sorted(found or ()))


def group_report(
    removal: Removal, settings: Mapping[str, ChannelPrune], *, refused: str = ""
) -> GroupReport:
    """What is to be told of one group."""
    group = removal.group
    ratio, aligned = group_setting(group, settings)
    units = () if refused else removal.units
    note = refused
    if not removal.units:
        note = f"{ratio:g} of {group.size} units rounds to none"
        if aligned and removed_count(group.size, ratio, aligned=False, stride=group.stride):
            note = f"its {group.size} channels stay because of the alignment to 16"
    return GroupReport(
        producers=tuple(m.module for m in group.producers),
        members=tuple(dict.fromkeys(_label(m) for m in group.members)),
        channels=int((group.producers[0].units >= 0).sum()),
        ratio=ratio,
        aligned=aligned,
        removed={m.module: m.channels(units) for m in group.producers},
        note=note,
    )


def _label(member: Member) -> str:
    return member.module if member.operator != "parameter" else f"{member.module}.{member.name}"
