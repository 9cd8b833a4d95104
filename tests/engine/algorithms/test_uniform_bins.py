"""Losses of a piecewise-uniform density against an integration piece by piece."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.engine.algorithms.uniform_bins import Grids, UniformBins


def integral(counts: list[int], first: float, step: float, levels: int) -> float:
    """∫ (x - nearest level)² density dx: cut each bin at every border, integrate each piece."""
    borders = [first + (j + 0.5) * step for j in range(levels - 1)]
    total = 0.0
    for i, n in enumerate(counts):
        cuts = [i, *sorted(b for b in borders if i < b < i + 1), i + 1]
        for p, q in itertools.pairwise(cuts):
            nearest = min(max(round(((p + q) / 2 - first) / step), 0), levels - 1)
            level = first + nearest * step
            total += n * ((q - level) ** 3 - (p - level) ** 3) / 3
    return total


grids = st.lists(
    st.tuples(st.floats(-20, 30), st.floats(0.02, 9.0), st.integers(1, 90)),
    min_size=1,
    max_size=12,
)
counts = st.lists(st.integers(0, 1000), min_size=1, max_size=40).filter(any)


@settings(deadline=None, max_examples=150)
@given(counts=counts, given_grids=grids)
def test_losses_equal_the_integral(
    counts: list[int], given_grids: list[tuple[float, float, int]]
) -> None:
    first, step, count = (np.array(c) for c in zip(*given_grids, strict=True))
    bins = UniformBins(np.array(counts))
    wanted = np.array([integral(counts, *g) for g in given_grids])
    scale = sum(counts) * 1e-6
    assert bins.losses(Grids(first, step, count)) == pytest.approx(wanted, rel=1e-6, abs=scale)
    best = bins.best(Grids(first, step, count))
    assert wanted[best] <= wanted.min() * (1 + 1e-6) + scale


@settings(deadline=None, max_examples=60)
@given(
    counts=counts,
    steps=st.lists(st.floats(0.001, 0.02), min_size=1, max_size=8),
    start=st.floats(-3, 3),
)
def test_best_of_grids_finer_than_the_bins(
    counts: list[int], steps: list[float], start: float
) -> None:
    levels = math.ceil(len(counts) / max(steps)) // 2 + len(counts)
    size = len(steps)
    given_grids = Grids(np.full(size, start), np.array(steps), np.full(size, levels))
    wanted = np.array([integral(counts, start, s, levels) for s in steps])
    best = UniformBins(np.array(counts)).best(given_grids)
    assert wanted[best] <= wanted.min() * (1 + 1e-6)


def test_first_of_equal_grids_wins() -> None:
    equal = Grids(np.zeros(3), np.ones(3), np.full(3, 5))
    assert UniformBins(np.array([1, 2, 3])).best(equal) == 0
