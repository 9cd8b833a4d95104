"""Cheap estimates of a configuration's loss from the few samples that quantisation hurts.

Most samples keep their score whatever is quantised. The loss of a configuration that lies
between the original and one that fails is therefore found on the samples of which the failing one
changes the score: evaluating only those costs a few percent of a whole evaluation.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.engine.search.judging import Judge, Scores

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class _Stratum:
    """``taken`` is a random part of ``population``; each of its samples stands for ``weight``."""

    population: Indices
    taken: Indices

    @property
    def weight(self) -> float:
        return len(self.population) / len(self.taken)


class Probes:
    """Estimates of the loss of configurations, on samples that failing configurations named.

    ``limit``: most samples of one failing configuration that are used, chosen at random (seeded)
    and weighted so that the estimate stays unbiased on them. Samples that no failing
    configuration changed count as unchanged.
    """

    def __init__(self, judge: Judge, original: Scores, *, limit: int, seed: int = 0) -> None:
        self._judge = judge
        self._original = original
        self._limit = max(1, limit)
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._strata: list[_Stratum] = []

    def learn(self, indices: Indices, scores: Scores) -> None:
        """Add the samples whose score a failing configuration changed.

        ``scores``: its scores of the samples ``indices``.
        """
        changed = indices[scores != self._original[indices]]
        older = [
            _Stratum(rest, taken)
            for stratum in self._strata
            if len(rest := np.setdiff1d(stratum.population, changed))
            and len(taken := np.setdiff1d(stratum.taken, changed))
        ]
        if len(changed):
            taken = changed
            if len(changed) > self._limit:
                taken = np.sort(self._generator.permutation(changed)[: self._limit])
            older.append(_Stratum(changed, taken))
        self._strata = older

    def loss(self, float_layers: Collection[str]) -> float:
        """Estimated loss of the mean score; evaluates only the samples not known yet."""
        return self.estimate(float_layers)[0]

    def estimate(self, float_layers: Collection[str]) -> tuple[float, float]:
        """Loss and its standard error, which is 0 where no sample was left out."""
        if not self._strata:
            return 0.0, 0.0
        taken = np.concatenate([stratum.taken for stratum in self._strata])
        scores = self._judge.scores(float_layers, taken.tolist())
        assert scores is not None
        lost = self._original[taken] - scores
        spread = float(np.max(np.abs(lost)))
        total = variance = 0.0
        ends = np.cumsum([len(stratum.taken) for stratum in self._strata])[:-1]
        for stratum, part in zip(self._strata, np.split(lost, ends), strict=True):
            count = len(part)
            total += stratum.weight * float(np.sum(part))
            # One more sample as far off as any keeps a small sample of equals from being sure.
            deviation = float(np.var(part)) + spread**2 / count
            left_out = 1.0 - 1.0 / stratum.weight
            variance += stratum.weight**2 * count * deviation * left_out
        return total / len(self._original), float(np.sqrt(variance)) / len(self._original)
