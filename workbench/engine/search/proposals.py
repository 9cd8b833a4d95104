"""What a search for the Pareto front judges next."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from workbench.engine.search.costs import CostTable, Options
from workbench.engine.search.evolution import Evolution
from workbench.engine.search.hypervolume import most_gain
from workbench.engine.search.judging import Choice, ParetoPoint
from workbench.engine.search.surrogate import Surrogate

BATCH = 6
"""Configurations that are proposed together, whatever the number of workers."""

_BRED = 2
_CANDIDATES = 150

Choices = Mapping[str, Choice]

_Frozen = frozenset[tuple[str, Choice]]


def held(choices: Choices, pins: Mapping[str, bool]) -> dict[str, Choice]:
    """``choices`` with the pins applied: a layer pinned quantised keeps its variant if it has one.

    Pinned quantised, a layer that was proposed in float gets the configuration's own settings.
    """
    result = dict(choices)
    for name, quantize in pins.items():
        if name in result and result[name].quantize is not quantize:
            result[name] = Choice(quantize)
    return result


def frozen(choices: Choices) -> _Frozen:
    return frozenset(choices.items())


class Proposals:
    """Batches of configurations that nobody has judged, from three sources.

    The first ones are known to be worth a look: every layer alike in each way, and prefixes of the
    ranking in float or in the dearer of the ways. Then each batch has a few bred by NSGA-II, one
    where the surrogate expects the cheapest configuration that satisfies, and some that it expects
    to move the front most (hypervolume), with the surrogate's doubt drawn at random for one.
    """

    def __init__(
        self,
        options: Options,
        errors: Mapping[tuple[str, Choice], float],
        costs: CostTable,
        ranking: Mapping[str, float],
        *,
        max_loss: float | None,
        seed: int,
    ) -> None:
        self._options, self._costs = options, costs
        self._surrogate = Surrogate(options, errors, costs)
        self._evolution = Evolution(options, seed)
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._max_loss = max_loss
        self._judged: dict[_Frozen, ParetoPoint] = {}
        self._first = self._starts(sorted(options, key=lambda name: ranking[name]))

    def _starts(self, ranked: Sequence[str]) -> list[dict[str, Choice]]:
        own = {name: Choice() for name in self._options}
        kinds = dict.fromkeys(c for a in self._options.values() for c in a if c.quantize)
        alike = [
            {name: kind if kind in allowed else Choice() for name, allowed in self._options.items()}
            for kind in kinds
        ]
        alike.sort(key=self._costs.cost)
        cheapest, count = alike[0], len(ranked)
        starts = [own, cheapest]
        for part in (8, 4, 2):
            cut = ranked[: math.ceil(count / part)]
            starts.append({**own, **{name: Choice(False) for name in cut}})
            starts.append({**cheapest, **{name: Choice() for name in cut}})
        return [*starts, *alike[1:]]

    def observe(self, point: ParetoPoint) -> None:
        """A point that was judged, or whose cost is known better now."""
        key = frozen(point.choices)
        if key not in self._judged:
            self._surrogate.observe(point.choices, point.loss)
            self._evolution.observe(point.choices, point.loss, point.cost)
        self._judged[key] = point

    def batch(self, pins: Mapping[str, bool]) -> list[dict[str, Choice]]:
        """Up to ``BATCH`` configurations; none when nothing is left to try."""
        batch = _Batch(self._judged, pins)
        while self._first and not batch.full:
            batch.add(self._first.pop(0))
        if batch.full:
            return batch.configurations
        scale, limit = self._scale(), self._limit()
        front = self._surrogate.front(scale, pins)
        batch.add_first([choices for choices, loss in front if loss <= limit])
        self._spread(batch, front, scale, 2)
        self._spread(batch, self._surrogate.front(scale, pins, self._generator), scale, 1)
        for choices in self._evolution.propose(_BRED, self._known, lambda c: held(c, pins)):
            batch.add(choices)
        for choices, _ in front:
            batch.add(choices)
        if not batch.full:
            self._fill(batch)
        return batch.configurations

    def _known(self, choices: Choices) -> tuple[float, float] | None:
        point = self._judged.get(frozen(choices))
        if point is None and not any(c.quantize for c in choices.values()):
            return 0.0, self._costs.cost(choices)
        return None if point is None else (point.loss, point.cost)

    def _fill(self, batch: _Batch) -> None:
        """With configurations that differ in one layer from a judged one, the best first."""
        for point in sorted(self._judged.values(), key=lambda p: (not p.on_front, p.loss)):
            for name, allowed in self._options.items():
                for choice in allowed:
                    batch.add({**point.choices, name: choice})
                    if batch.full:
                        return

    def _limit(self) -> float:
        """The largest loss that satisfies, as far as known."""
        if self._max_loss is not None:
            return self._max_loss
        good = [p.loss for p in self._judged.values() if p.satisfied]
        bad = [p.loss for p in self._judged.values() if not p.satisfied]
        highest = max(good, default=0.0)
        above = [loss for loss in bad if loss > highest]
        return (highest + min(above)) / 2 if above else highest

    def _scale(self) -> float:
        losses = [abs(p.loss) for p in self._judged.values() if math.isfinite(p.loss)]
        largest = max(losses, default=0.0) or 1.0
        return max(abs(self._limit()), 1e-3 * largest)

    def _spread(
        self, batch: _Batch, front: Sequence[tuple[Choices, float]], scale: float, count: int
    ) -> None:
        """Those of ``front`` that are expected to gain most, with what is in the batch already."""
        points = [p for p in self._judged.values() if math.isfinite(p.loss)]
        lowest = min([p.loss for p in points] + [0.0])

        def place(loss: float, cost: float) -> tuple[float, float]:
            # Losses far beyond what matters are all the same, so that they win no area.
            above = max(0.0, loss - lowest)
            return above / (above + scale), cost

        fresh = [pair for pair in front if batch.is_new(pair[0])]
        step = max(1, math.ceil(len(fresh) / _CANDIDATES))
        candidates = fresh[::step]
        places = [place(loss, self._costs.cost(choices)) for choices, loss in candidates]
        known = [place(p.loss, p.cost) for p in points]
        known += [place(limit, self._costs.cost(c)) for c, limit in batch.expected]
        corner = (1.0, 1.001 * max(cost for _, cost in [*places, *known, (0.0, 0.0)]))
        for index in most_gain(places, known, corner, count):
            batch.add(candidates[index][0], candidates[index][1])


class _Batch:
    """Configurations that are new, with the pins applied, and quantise something."""

    def __init__(self, judged: Collection[_Frozen], pins: Mapping[str, bool]) -> None:
        self._judged, self._pins = judged, pins
        self._found: dict[_Frozen, dict[str, Choice]] = {}
        self.expected: list[tuple[Choices, float]] = []

    @property
    def full(self) -> bool:
        return len(self._found) == BATCH

    @property
    def configurations(self) -> list[dict[str, Choice]]:
        return list(self._found.values())

    def is_new(self, choices: Choices) -> bool:
        choices = held(choices, self._pins)
        key = frozen(choices)
        new = key not in self._judged and key not in self._found
        return new and any(c.quantize for c in choices.values())

    def add(self, choices: Choices, loss: float | None = None) -> bool:
        """Whether there was room and use for it; ``loss`` that is expected."""
        if self.full or not self.is_new(choices):
            return False
        choices = held(choices, self._pins)
        self._found[frozen(choices)] = choices
        if loss is not None:
            self.expected.append((choices, loss))
        return True

    def add_first(self, candidates: Sequence[Choices]) -> None:
        """The first of them that is new."""
        for choices in candidates:
            if self.add(choices):
                return
