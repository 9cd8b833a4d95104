"""What the removal of channels leaves of a model, for any choice: a table without the model.

Source: specification chapter 40 sections 3.5 and 6.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from torch import nn

from workbench.engine.algorithms.channel_choice import removed_count
from workbench.engine.analysis.cost import FLOAT_BITS
from workbench.engine.graph.capture import Captured
from workbench.engine.graph.channel_groups import ChannelGroup
from workbench.engine.search.channel_space import LayerCost, layer_costs


@dataclass(frozen=True)
class GroupRow:
    """A group of coupled channels: ``size`` units of ``unit_channels`` channels.

    ``producers``: layer -> channels of it that a unit takes. ``stride``: units go in multiples.
    """

    producers: Mapping[str, float]
    size: int
    stride: int
    unit_channels: int

    def count(self, ratios: Mapping[str, float], *, aligned: bool) -> int:
        """Units that go when its producers are given ``ratios``; none while one has no ratio."""
        if not all(ratios.get(name) for name in self.producers):
            return 0
        return removed_count(
            self.size,
            min(ratios[name] for name in self.producers),
            aligned=aligned,
            stride=self.stride,
            unit_channels=self.unit_channels,
        )


@dataclass(frozen=True)
class AxisRow:
    """An axis of ``length`` channels, and how many of them a unit of each group takes."""

    length: int
    units: tuple[tuple[int, float], ...]

    def left(self, counts: Sequence[int]) -> float:
        return self.length - sum(counts[group] * channels for group, channels in self.units)


@dataclass(frozen=True)
class LayerRow:
    """A layer that computes: its cost with all channels, and its two axes."""

    name: str
    cost: LayerCost
    inputs: AxisRow
    outputs: AxisRow


@dataclass(frozen=True)
class ParameterRow:
    """A parameter: its numbers, bytes of each, and its axes that shrink."""

    numel: int
    width: int
    axes: tuple[AxisRow, ...]


@dataclass(frozen=True)
class Remains:
    """What is left. ``ratio``: bit-operations of the original ÷ these (section 6.2).

    ``bitops``: multiply-accumulates of one sample × bits of both factors (decision 17).
    """

    parameters: int
    bytes: int
    macs: int
    bitops: float
    ratio: float


@dataclass(frozen=True)
class ChannelTable:
    """Groups, layers and parameters of a model; ``other_macs``: of layers without a weight."""

    groups: tuple[GroupRow, ...]
    layers: tuple[LayerRow, ...]
    parameters: tuple[ParameterRow, ...]
    other_macs: int

    def counts(self, ratios: Mapping[str, float], *, aligned: bool = False) -> tuple[int, ...]:
        """Units that each group loses when layers are given ``ratios``."""
        return tuple(group.count(ratios, aligned=aligned) for group in self.groups)

    def ratios(self, counts: Sequence[int]) -> dict[str, float]:
        """Layer -> ratio that takes these units; of several groups the smaller share."""
        found: dict[str, float] = {}
        for group, count in zip(self.groups, counts, strict=True):
            share = round(count / group.size, 6)
            for name in group.producers:
                found[name] = min(found.get(name, share), share)
        return {name: share for name, share in found.items() if share}

    def removed(self, counts: Sequence[int]) -> dict[str, int]:
        """Layer -> output channels that go, of those that lose any."""
        found: dict[str, float] = {}
        for group, count in zip(self.groups, counts, strict=True):
            for name, channels in group.producers.items():
                found[name] = found.get(name, 0.0) + count * channels
        return {name: round(channels) for name, channels in found.items() if channels}

    def remains(self, counts: Sequence[int]) -> Remains:
        """What is left when each group loses so many units."""
        sizes = [
            (round(row.numel * prod(a.left(counts) / a.length for a in row.axes)), row.width)
            for row in self.parameters
        ]
        before = after = 0.0
        macs = self.other_macs
        for row in self.layers:
            cost, cin, cout = row.cost, row.inputs.left(counts), row.outputs.left(counts)
            before += cost.bitops(cost.cin, cost.cout)
            after += cost.bitops(cin, cout)
            macs += round(cost.left(cin, cout))
        return Remains(
            sum(count for count, _ in sizes),
            sum(count * width for count, width in sizes),
            macs,
            float(macs * FLOAT_BITS * FLOAT_BITS),
            before / after if after else 1.0,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ChannelTable:
        """What ``to_json`` gave; ``KeyError`` or ``TypeError`` for anything else."""
        layers = (
            LayerRow(x["name"], LayerCost(**x["cost"]), _axis(x["inputs"]), _axis(x["outputs"]))
            for x in data["layers"]
        )
        parameters = (
            ParameterRow(x["numel"], x["width"], tuple(_axis(a) for a in x["axes"]))
            for x in data["parameters"]
        )
        groups = (GroupRow(**x) for x in data["groups"])
        return cls(tuple(groups), tuple(layers), tuple(parameters), int(data["other_macs"]))


def channel_table(captured: Captured, groups: Sequence[ChannelGroup]) -> ChannelTable:
    """The table of a captured model whose ``groups`` may lose channels."""
    costs = layer_costs(captured)
    modules = dict(captured.module.named_modules())
    inputs: dict[str, list[tuple[int, float]]] = {name: [] for name in costs}
    outputs: dict[str, list[tuple[int, float]]] = {name: [] for name in costs}
    axes: dict[tuple[int, int], tuple[int, list[tuple[int, float]]]] = {}
    rows = []
    for number, group in enumerate(groups):
        producers: dict[str, float] = {}
        for member in group.members:
            share = float((member.units >= 0).sum()) / group.size
            parameter = modules[member.module]._parameters.get(member.name)
            key = (id(parameter), member.axis)
            axes.setdefault(key, (len(member.units), []))[1].append((number, share))
            if member.role == "producer":
                producers[member.module] = producers.get(member.module, 0.0) + share
            if member.module in costs and member.name == "weight":
                if member.role == "producer" or (member.role == "pass" and member.axis == 0):
                    outputs[member.module].append((number, share))
                elif member.role == "consumer":
                    inputs[member.module].append((number, share))
        rows.append(GroupRow(producers, group.size, group.stride, group.unit_channels))
    layers = tuple(
        LayerRow(
            name,
            cost,
            AxisRow(cost.cin, tuple(inputs[name])),
            AxisRow(cost.cout, tuple(outputs[name])),
        )
        for name, cost in costs.items()
    )
    parameters = tuple(
        ParameterRow(
            parameter.numel(),
            parameter.element_size(),
            tuple(
                AxisRow(n, tuple(u)) for (key, _), (n, u) in axes.items() if key == id(parameter)
            ),
        )
        for parameter in captured.module.parameters()
    )
    others = sum(info.macs for name, info in captured.layers.items() if name not in costs)
    return ChannelTable(tuple(rows), layers, parameters, others)


def _axes_of(
    parameter: nn.Parameter, axes: Mapping[tuple[int, int], tuple[int, list[tuple[int, float]]]]
) -> tuple[AxisRow, ...]:
    """The axes of a parameter that some group shrinks; ``axes`` by (id of it, axis)."""
    own = [found for (key, _), found in axes.items() if key == id(parameter)]
    return tuple(AxisRow(length, tuple(units)) for length, units in own)


def _axis(data: Mapping[str, Any]) -> AxisRow:
    return AxisRow(int(data["length"]), tuple((int(g), float(c)) for g, c in data["units"]))
