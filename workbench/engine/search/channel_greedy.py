"""Removing the channels of least sensitivity per bit-operation, until few enough are left.

Source: specification chapter 40 section 6.5, with D-14 and D-15 of section 9.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workbench.engine.events import CancelToken, check
from workbench.engine.search.channel_space import SearchSpace, removal_order

Units = tuple[int, ...]


def greedy(
    space: SearchSpace,
    sensitivity: Sequence[NDArray[np.float64]],
    target: float,
    *,
    cancel: CancelToken | None = None,
) -> list[Units]:
    """Units that each group loses: the first removal that meets ``target`` is the last.

    ``space`` is brought to the state that this leaves.
    """
    orders = [removal_order(g, s) for g, s in zip(space.groups, sensitivity, strict=True)]
    gone: list[list[int]] = [[] for _ in space.groups]
    densities = [_density(space, i, orders[i], sensitivity[i]) for i in range(len(orders))]
    while space.ratio < target:
        check(cancel)
        index = min(range(len(orders)), key=lambda i: densities[i], default=-1)
        if index < 0 or densities[index] == np.inf:
            break
        step = space.states[index].step()
        gone[index] += _next(space, index, orders[index], step)
        space.remove(index, step)
        for other in space.neighbours[index]:
            densities[other] = _density(space, other, orders[other], sensitivity[other])
    return [tuple(sorted(units)) for units in gone]


def _next(space: SearchSpace, index: int, order: Sequence[Units], step: int) -> list[int]:
    """The group's next ``step`` units in their order."""
    state = space.states[index]
    stride = state.group.stride
    start = (state.group.size - state.left) // stride
    return [unit for part in order[start : start + step // stride] for unit in part]


def _density(
    space: SearchSpace, index: int, order: Sequence[Units], sensitivity: NDArray[np.float64]
) -> float:
    """Sensitivity per bit-operation saved by the group's next removal; inf when there is none.

    Sensitivities are measured with every channel in its place. The fewer are left, the more of the
    loss each of them carries, so the value grows with (size ÷ left)².
    """
    state = space.states[index]
    step = state.step()
    saved = space.saving(index, step) if step else 0.0
    if saved <= 0:
        return float("inf")
    value = float(sensitivity[_next(space, index, order, step)].sum()) / saved
    return value * (state.group.size / state.left) ** 2


class CompatGreedy:
    """The reference's search: it looks at the ratio after every ``search_step`` channels.

    The step of the winner is that of the group looked at last (D-15).
    """

    def __init__(
        self, space: SearchSpace, sensitivity: Sequence[NDArray[np.float64]], search_step: int
    ) -> None:
        self._space = space
        self._sensitivity = sensitivity
        self._search_step = search_step
        self._left = [group.size for group in space.groups]
        self._orders = [
            [unit for part in removal_order(g, s) for unit in part]
            for g, s in zip(space.groups, sensitivity, strict=True)
        ]

    def run(self, target: float) -> list[Units]:
        space = self._space
        costs = [space.unit_cost(index) for index in range(len(space.groups))]
        pending: dict[int, int] = {}
        while space.ratio < target:
            index, step = self._choose(costs)
            if index < 0:
                self._settle(pending)
                break
            self._left[index] -= step
            pending[index] = pending.get(index, 0) + step
            if sum(pending.values()) >= self._search_step:
                self._settle(pending)
                costs = [space.unit_cost(index) for index in range(len(space.groups))]
        return [
            tuple(sorted(order[: group.size - left]))
            for order, group, left in zip(self._orders, space.groups, self._left, strict=True)
        ]

    def _settle(self, pending: dict[int, int]) -> None:
        for index, units in pending.items():
            self._space.remove(index, units)
        pending.clear()

    def _choose(self, costs: Sequence[float]) -> tuple[int, int]:
        best, chosen, step = float("inf"), -1, 0
        for index, state in enumerate(self._space.states):
            left = self._left[index]
            step = left % state.block or state.block
            if left - step < state.least or left - step <= 0:
                continue
            start = state.group.size - left
            units = self._orders[index][start : start + step]
            value = float(self._sensitivity[index][units].sum()) / costs[index]
            if value < best:
                best, chosen = value, index
        if chosen >= 0 and self._left[chosen] - step <= 0:
            step = self._space.states[chosen].block
        return chosen, step
