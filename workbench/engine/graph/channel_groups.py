"""Channel groups: channels that live and die together, as units that can be removed one by one.

Source: specification chapter 40 sections 3 and 9.3.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from math import gcd

import numpy as np

from workbench.engine.graph.channel_labels import IntArray
from workbench.engine.graph.channel_map import ChannelMap

__all__ = ["ChannelGroup", "ChannelGroups", "Member", "SizeInCode", "channel_groups"]


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of one parameter that loses channels with its group.

    ``owners``: every (module path, name) that holds the parameter. ``role``: producer (a layer's
    output axis), consumer (a layer's input axis) or pass (scales, biases, depthwise kernels).
    ``units[i]``: the unit of the group that channel i belongs to, -1 for none. A grouped
    convolution's input axis is listed for all ``groups``, one group after another.
    """

    owners: tuple[tuple[str, str], ...]
    axis: int
    role: str
    operator: str
    groups: int
    units: IntArray

    @property
    def module(self) -> str:
        return self.owners[0][0]

    @property
    def name(self) -> str:
        return self.owners[0][1]

    def channels(self, units: Collection[int]) -> tuple[int, ...]:
        """Channels of this axis that belong to ``units``."""
        found: list[int] = np.flatnonzero(np.isin(self.units, list(units))).tolist()
        return tuple(found)


@dataclass(frozen=True, eq=False)
class SizeInCode:
    """A size that shrinks with the group and that the code of module ``scope`` may hold.

    ``number`` is the same for the groups that share the axis.
    """

    number: int
    scope: str
    operator: str
    units: IntArray


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Units that can be removed, each with all of its channels.

    ``cells``: units of the same kind. Every cell must lose the same share: the group is divided
    into ``steps`` removals of ``stride`` units.
    """

    members: tuple[Member, ...]
    cells: tuple[tuple[int, ...], ...]
    sizes: tuple[SizeInCode, ...]

    @property
    def size(self) -> int:
        return sum(map(len, self.cells))

    @property
    def steps(self) -> int:
        return gcd(*map(len, self.cells))

    @property
    def stride(self) -> int:
        return self.size // self.steps

    @property
    def producers(self) -> tuple[Member, ...]:
        return tuple(m for m in self.members if m.role == "producer")

    @property
    def unit_channels(self) -> int:
        """The largest number of channels of one producer that a unit takes with it."""
        return max(int(np.bincount(m.units[m.units >= 0]).max()) for m in self.producers)


@dataclass(frozen=True)
class ChannelGroups:
    """``groups`` in the order of their first producer; ``reasons`` of the producers in none."""

    groups: tuple[ChannelGroup, ...]
    reasons: Mapping[str, str]


def channel_groups(channels: ChannelMap, producers: Collection[str] | None = None) -> ChannelGroups:
    """Groups of what may go when only ``producers`` lose channels (None: all that can)."""
    frozen = _freeze(channels, producers)
    units = _removable(channels, frozen)
    keys = _keys(channels, units)
    groups = []
    builder = _Builder(channels)
    for component in _components(channels, units, keys):
        cells: dict[object, list[int]] = defaultdict(list)
        for label in component:
            cells[keys[label]].append(label)
        if gcd(*map(len, cells.values())) < 2:
            reason = "its channels can only go all together"
            frozen.update((label, reason) for label in component if label not in frozen)
        else:
            groups.append(builder.group(list(cells.values())))
    groups.sort(key=_first_producer(channels))
    inside = {m.module for g in groups for m in g.producers}
    reasons = {
        path: _reason(channels, path, frozen) for path in channels.producers if path not in inside
    }
    return ChannelGroups(tuple(groups), reasons)


def _freeze(channels: ChannelMap, producers: Collection[str] | None) -> dict[int, str]:
    """Labels that stay, with what the choice of producers and the cuts add."""
    frozen = dict(channels.frozen)
    if producers is not None:
        for axis in channels.axes:
            if axis.role == "producer" and axis.owners[0][0] not in producers:
                reason = _switched_off(axis.owners[0][0])
                for label in np.unique(axis.labels).tolist():
                    frozen.setdefault(label, reason)
    while True:
        added: dict[int, str] = {}
        for block in channels.blocks:
            labels = np.unique(block.labels).tolist()
            reasons = [frozen[label] for label in labels if label in frozen]
            if reasons and len(reasons) < len(labels):
                text = f"it is divided together with channels that stay: {reasons[0]}"
                added |= {label: text for label in labels if label not in frozen}
        if not added:
            return frozen
        frozen |= added


def _removable(channels: ChannelMap, frozen: Mapping[int, str]) -> set[int]:
    """Labels that some producer makes and nothing freezes."""
    made = [axis.labels for axis in channels.axes if axis.role == "producer"]
    return {x for labels in made for x in np.unique(labels).tolist() if x not in frozen}


def _keys(channels: ChannelMap, units: set[int]) -> dict[int, tuple[object, ...]]:
    """What tells the kinds of units apart: the axes they are on and the blocks they lie in."""
    found: dict[int, list[object]] = {label: [] for label in units}
    for number, axis in enumerate(channels.axes):
        _note(found, axis.labels, ("axis", number))
    for number, block in enumerate(channels.blocks):
        start = 0
        for position, end in enumerate(block.ends):
            _note(found, block.labels[start:end], ("block", number, position))
            start = end
    return {label: tuple(marks) for label, marks in found.items()}


def _note(found: dict[int, list[object]], labels: IntArray, mark: object) -> None:
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if int(label) in found:
            found[int(label)].append((mark, int(count)))


def _components(
    channels: ChannelMap, units: set[int], keys: Mapping[int, object]
) -> list[list[int]]:
    """Units that must be decided on together: of one kind, or of one divided axis."""
    parent: dict[object, object] = {}

    def find(item: object) -> object:
        while parent.setdefault(item, item) != item:
            item = parent[item]
        return item

    for block in channels.blocks:
        marks = [keys[x] for x in np.unique(block.labels).tolist() if x in units]
        for mark in marks[1:]:
            parent[find(mark)] = find(marks[0])
    components: dict[object, list[int]] = defaultdict(list)
    for label in sorted(units):
        components[find(keys[label])].append(label)
    return list(components.values())


class _Builder:
    """Makes groups of labels; what lies on which axis is looked up once."""

    def __init__(self, channels: ChannelMap) -> None:
        self._channels = channels
        self._axes = _places(axis.labels for axis in channels.axes)
        self._sizes = _places(size.labels for size in channels.sizes)

    def group(self, cells: list[list[int]]) -> ChannelGroup:
        labels = [label for cell in cells for label in cell]
        axes = [self._channels.axes[i] for i in _of(self._axes, labels)]
        # Units are numbered in the order of their channels in the first producer.
        ordered = _ordered([a.labels for a in axes if a.role == "producer"], labels)
        number = {label: unit for unit, label in enumerate(ordered)}
        members = [
            Member(a.owners, a.axis, a.role, a.operator, a.groups, _units(a.labels, number))
            for a in axes
        ]
        sizes = [
            SizeInCode(i, size.scope, size.operator, _units(size.labels, number))
            for i in _of(self._sizes, labels)
            for size in [self._channels.sizes[i]]
        ]
        numbered = (tuple(sorted(number[x] for x in cell)) for cell in cells)
        return ChannelGroup(tuple(members), tuple(sorted(numbered)), tuple(sizes))


def _places(arrays: Iterable[IntArray]) -> dict[int, list[int]]:
    """Label -> the numbers of the arrays that hold it."""
    places: dict[int, list[int]] = defaultdict(list)
    for number, array in enumerate(arrays):
        for label in np.unique(array).tolist():
            places[label].append(number)
    return places


def _of(places: Mapping[int, list[int]], labels: Iterable[int]) -> list[int]:
    return sorted({number for label in labels for number in places.get(label, ())})


def _ordered(producers: list[IntArray], labels: Iterable[int]) -> list[int]:
    wanted = set(labels)
    found = (label for line in producers for label in line.tolist() if label in wanted)
    return list(dict.fromkeys(found))


def _units(labels: IntArray, number: Mapping[int, int]) -> IntArray:
    return np.array([number.get(label, -1) for label in labels.tolist()], np.int64)


def _first_producer(channels: ChannelMap) -> Callable[[ChannelGroup], tuple[int, int]]:
    order = {path: index for index, path in enumerate(channels.producers)}

    def key(group: ChannelGroup) -> tuple[int, int]:
        first = group.producers[0]
        return order[first.module], int(np.flatnonzero(first.units >= 0)[0])

    return key


def _reason(channels: ChannelMap, path: str, frozen: Mapping[int, str]) -> str:
    if channels.producers[path]:
        return channels.producers[path]
    for axis in channels.axes:
        if axis.role == "producer" and axis.owners[0][0] == path:
            held = [frozen[x] for x in np.unique(axis.labels).tolist() if x in frozen]
            if held:
                return "it is switched off" if held[0] == _switched_off(path) else held[0]
    return "it has a single output channel"


def _switched_off(path: str) -> str:
    """What is told of the layers that are coupled to a producer which must stay."""
    return f"it would take channels of {path}, which is switched off"
