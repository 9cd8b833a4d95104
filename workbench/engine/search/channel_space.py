"""What a channel search chooses from: groups, and the bit-operations that their units cost.

Source: specification chapter 40 sections 6.2 and 6.3, with D-11 and D-12 of section 9.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import gcd, lcm, prod

import numpy as np
from numpy.typing import NDArray
from torch import nn

from workbench.engine.algorithms.channel_choice import ALIGNMENT
from workbench.engine.graph.capture import Captured
from workbench.engine.graph.channel_groups import ChannelGroup
from workbench.engine.graph.layers import LayerInfo


@dataclass
class LayerCost:
    """Bit-operations of one layer for one sample as channels go.

    ``products``: multiply-accumulates with all channels; ``outputs``: values that it makes;
    ``depthwise``: products follow the output channels alone.
    """

    cin: int
    cout: int
    products: int
    outputs: int
    has_bias: bool
    bits: int
    depthwise: bool

    def bitops(self, cin: float, cout: float) -> float:
        """Bit-operations with ``cin`` and ``cout`` channels left."""
        outputs = self.outputs * cout / self.cout
        return (2 * self.left(cin, cout) + (self.has_bias - 1) * outputs) * self.bits

    def left(self, cin: float, cout: float) -> float:
        """Multiply-accumulates with ``cin`` and ``cout`` channels left."""
        return self.products * cout / self.cout * (1 if self.depthwise else cin / self.cin)


def layer_costs(captured: Captured, *, compat: bool = False) -> dict[str, LayerCost]:
    """The cost of every convolution and linear layer that runs.

    ``compat``: the weight's own shape stands for the layer's input, as in the reference.
    """
    modules = dict(captured.module.named_modules())
    found = {}
    for name, info in captured.layers.items():
        if not info.calls or not info.macs or not info.has_weight or info.type in ("LSTM", "GRU"):
            continue
        width = modules[name].weight.element_size() * 8
        products = info.macs
        inputs = prod(info.weight_shape[1:])
        outputs = _outputs(info)
        depthwise = info.groups > 1 and info.groups == info.in_channels
        if compat:
            inputs, outputs = _compat_sizes(modules[name], info)
            products, depthwise = inputs * outputs, False
        found[name] = LayerCost(
            info.in_channels,
            info.out_channels,
            products,
            outputs,
            info.has_bias,
            width * width,
            depthwise,
        )
    return found


def _outputs(info: LayerInfo) -> int:
    """Values that a layer makes for one sample."""
    if info.type.startswith("ConvTranspose"):
        return prod(info.output_shape[1:]) * max(info.calls, 1)
    return info.macs // prod(info.weight_shape[1:])


def _compat_sizes(module: nn.Module, info: LayerInfo) -> tuple[int, int]:
    """(products per output, outputs) as the reference counts them from the weight's shape."""
    shape = info.weight_shape
    if not isinstance(module, nn.modules.conv._ConvNd):
        return shape[1], shape[0] * shape[0]
    sizes = []
    for axis, kernel in enumerate(shape[2:]):
        pad = module.padding[axis] if not isinstance(module.padding, str) else 0
        reach = module.dilation[axis] * (kernel - 1)
        sizes.append((kernel + 2 * int(pad) - reach - 1) // module.stride[axis] + 1)
    return info.in_channels * prod(shape[2:]), prod(sizes) * info.out_channels**2


@dataclass(eq=False)
class GroupState:
    """A group on its way: units that are left, and how it may be divided."""

    group: ChannelGroup
    producers: dict[str, float]
    consumers: dict[str, float]
    block: int
    least: float
    left: int

    def step(self) -> int:
        """Units of the next removal; 0 when none is allowed."""
        step = self.left % self.block or self.block
        rest = self.left - step
        return step if rest > 0 and rest >= self.least else 0


class SearchSpace:
    """Groups and costs of a model; what is removed lowers the cost of the layers it touches."""

    def __init__(
        self,
        groups: Sequence[ChannelGroup],
        costs: dict[str, LayerCost],
        *,
        ascend_optimized: bool,
        max_prune_ratio: float,
        swapped: bool = False,
    ) -> None:
        self.groups = tuple(groups)
        self.costs = costs
        self._swapped, self._aligned, self._most = swapped, ascend_optimized, max_prune_ratio
        self.cin = {name: float(cost.cin) for name, cost in costs.items()}
        self.cout = {name: float(cost.cout) for name, cost in costs.items()}
        self.original = sum(c.bitops(c.cin, c.cout) for c in costs.values())
        self.states = [self._state(group) for group in self.groups]
        self._bitops = {n: c.bitops(c.cin, c.cout) for n, c in costs.items()}
        self.neighbours = self._neighbours()

    @property
    def ratio(self) -> float:
        """Original bit-operations ÷ those that are left."""
        return self.original / sum(self._bitops.values())

    def unit_cost(self, index: int) -> float:
        """Bit-operations of one unit by the layers as they are: each as producer and consumer."""
        state = self.states[index]
        cost = 0.0
        for name, channels in state.producers.items():
            cost += self._bitops[name] * channels / (self._size(name, making=True))
        for name, channels in state.consumers.items():
            cost += self._bitops[name] * channels / (self._size(name, making=False))
        return cost

    def saving(self, index: int, units: int) -> float:
        """Bit-operations that go with ``units`` more units of a group, exactly."""
        saved = 0.0
        for name, cin, cout in self._without(self.states[index], units):
            saved += self._bitops[name] - self.costs[name].bitops(cin, cout)
        return saved

    def remove(self, index: int, units: int) -> None:
        """Take ``units`` from a group."""
        self._remove(self.states[index], units)

    def remove_fixed(self, group: ChannelGroup, units: int) -> None:
        """Take ``units`` from a group that is not searched."""
        self._remove(self._state(group), units)

    def graph_info(self) -> dict[str, dict[str, float]]:
        """The layers as plug-ins see them."""
        return {
            name: {
                "cin": cost.cin,
                "cout": cost.cout,
                "ori_cout": cost.cout,
                "bitops": cost.bitops(cost.cin, cost.cout),
            }
            for name, cost in self.costs.items()
        }

    def _size(self, name: str, *, making: bool) -> float:
        """What a layer's cost is shared among; the reference takes the other side."""
        return self.cout[name] if making != self._swapped else self.cin[name]

    def _remove(self, state: GroupState, units: int) -> None:
        for name, cin, cout in self._without(state, units):
            self.cin[name], self.cout[name] = cin, cout
            self._bitops[name] = self.costs[name].bitops(cin, cout)
        state.left -= units

    def _without(self, state: GroupState, units: int) -> Iterable[tuple[str, float, float]]:
        """(layer, input channels, output channels) after ``units`` more are gone."""
        for name in _layers(state):
            cin = self.cin[name] - units * state.consumers.get(name, 0.0)
            cout = self.cout[name] - units * state.producers.get(name, 0.0)
            yield name, cin, cout

    def _state(self, group: ChannelGroup) -> GroupState:
        producers: dict[str, float] = {}
        consumers: dict[str, float] = {}
        for member in group.members:
            if member.module not in self.costs or member.name != "weight":
                continue
            share = float((member.units >= 0).sum()) / group.size
            if member.role == "producer" or (member.role == "pass" and member.axis == 0):
                producers[member.module] = producers.get(member.module, 0.0) + share
            elif member.role == "consumer":
                consumers[member.module] = consumers.get(member.module, 0.0) + share
        aligned = ALIGNMENT // gcd(ALIGNMENT, group.unit_channels) if self._aligned else 1
        return GroupState(
            group=group,
            producers=producers,
            consumers=consumers,
            block=lcm(group.stride, aligned),
            least=group.size * (1 - self._most) - 1e-9,
            left=group.size,
        )

    def _neighbours(self) -> list[tuple[int, ...]]:
        """Groups whose savings change with each group's: those that share a layer with it."""
        touching: dict[str, list[int]] = {}
        for index in range(len(self.states)):
            for name in _layers(self.states[index]):
                touching.setdefault(name, []).append(index)
        return [
            tuple(sorted({other for name in _layers(self.states[i]) for other in touching[name]}))
            for i in range(len(self.states))
        ]


def _layers(state: GroupState) -> Iterable[str]:
    return dict.fromkeys((*state.producers, *state.consumers))


def removal_order(
    group: ChannelGroup, sensitivity: NDArray[np.float64]
) -> tuple[tuple[int, ...], ...]:
    """The group's removals of ``stride`` units, the least sensitive of every cell first."""
    orders = [sorted(cell, key=lambda unit: (sensitivity[unit], unit)) for cell in group.cells]
    shares = [len(cell) // group.steps for cell in group.cells]
    return tuple(
        tuple(
            unit
            for order, share in zip(orders, shares, strict=True)
            for unit in order[step * share : (step + 1) * share]
        )
        for step in range(group.steps)
    )
