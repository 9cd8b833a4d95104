"""Rounding losses of data known as counts on bins, taken as uniform inside each bin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Small enough that the temporary arrays stay in the second-level cache and on the heap.
_AT_ONCE = 1 << 13
# Largest |P(f)| of the periodic part of a rounding error's integral, 1 / (18 √12).
_WIGGLE = 0.0160376


@dataclass(frozen=True)
class Grids:
    """Candidate grids in bin units: levels ``first + k * step`` for ``k`` below ``count``."""

    first: Floats
    step: Floats
    count: npt.NDArray[np.int64]

    def take(self, rows: slice | npt.NDArray[np.intp]) -> Grids:
        return Grids(self.first[rows], self.step[rows], self.count[rows])


class UniformBins:
    """``counts[i]`` values, whole numbers, spread evenly over ``[i, i + 1)``; lengths are in bins.

    The loss of a grid is the sum over all values of the squared distance to the nearest level,
    those beyond its ends included. Both forms below are exact for this density: one looks at the
    borders between levels, the other at the borders between bins.
    """

    def __init__(self, counts: npt.NDArray[np.generic]) -> None:
        # One more bin, an empty one, stands for everything above.
        self._whole = np.append(counts.astype(np.int64, copy=False), 0)

    @cached_property
    def counts(self) -> Floats:
        return self._whole[:-1].astype(np.float64)

    @cached_property
    def _sums(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Number of values below each bin's lower border, and the running sum of these numbers.

        Sums of integers take an eighth of the time of those of floats, and are exact.
        """
        below = np.zeros_like(self._whole)
        np.cumsum(self._whole[:-1], out=below[1:])
        return below, np.cumsum(below)

    @cached_property
    def total(self) -> float:
        return float(self._sums[0][-1])

    @cached_property
    def _moments(self) -> tuple[float, float]:
        """Σx and Σx², by parts: from the integral of the distribution, and the integral of that."""
        _, sums = self._sums
        bins = len(sums) - 1
        area = float(sums[-1]) - self.total / 2
        volume = float(sums[:-1].sum(dtype=np.float64)) + self.total / 6
        return bins * self.total - area, bins * (bins * self.total - 2 * area) + 2 * volume

    def holder(self, k: int) -> int:
        """The bin of the ``k``-th smallest value."""
        return int(np.searchsorted(self._sums[0], k)) - 1

    def losses(self, grids: Grids) -> Floats:
        """Loss of every grid in squared bins, from the borders between its levels.

        Σ (level² n - 2 level Σx) by parts leaves the integral S of the distribution at each border.
        """
        below, sums = self._sums
        moment, square = self._moments
        top = grids.first + grids.step * (grids.count - 1)
        result = square + top * (top * self.total - 2 * moment)
        most = int(grids.count.max()) - 1
        if most < 1:
            return np.maximum(result, 0.0)
        uneven = int(grids.count.min()) - 1 < most
        border = np.arange(0.5, most)
        block = max(1, _AT_ONCE // most)
        for start in range(0, len(result), block):
            rows = slice(start, start + block)
            step = grids.step[rows, None]
            place = grids.first[rows, None] + step * border
            np.maximum(place, 0.0, out=place)
            cell = place.astype(np.intp)
            np.minimum(cell, len(below) - 1, out=cell)
            place -= cell
            # S = C + F (f - 1/2) + n f² / 2 with f the place in the bin and C the running sum of F.
            # No cell lies outside; "clip" is the fast way of saying so.
            value = self._whole.take(cell, mode="clip") * place
            value *= place
            place *= 2
            place -= 1
            place *= below.take(cell, mode="clip")
            value += place
            value *= 0.5
            value += sums.take(cell, mode="clip")
            if uneven:
                value[border > grids.count[rows, None] - 1] = 0.0
            result[rows] -= 2 * step[:, 0] * value.sum(axis=1)
        return np.maximum(result, 0.0)

    def best(self, grids: Grids) -> int:
        """Index of the first grid with the smallest loss.

        Grids are looked at in the order of a lower bound that costs nothing a bin or level, until
        the bound passes the best loss found.
        """
        fine = int(grids.count.max()) > len(self.counts)
        smooth, lower = self._bounds(grids, fine)
        order = np.argsort(lower, kind="stable")
        found = np.full(len(lower), np.inf)
        block = max(1, _AT_ONCE // min(len(self.counts), int(grids.count.max())))
        best = np.inf
        for start in range(0, len(order), block):
            rows = order[start : start + block]
            if lower[rows[0]] > best * (1 + 1e-9):
                break
            some = grids.take(rows)
            found[rows] = smooth[rows] + self._wiggles(some) if fine else self.losses(some)
            best = min(best, float(found[rows].min()))
        return first_smallest(found)

    def _bounds(self, grids: Grids, fine: bool) -> tuple[Floats, Floats]:
        """Losses if every value inside a grid cost step²/12, and lower bounds of the true ones.

        ``fine``: steps of less than a bin. Otherwise the cost of what a grid clips is the bound.
        """
        low, high = self._ends(grids)
        top = grids.first + grids.step * (grids.count - 1)
        (n_low, m_low, s_low), (n_high, m_high, s_high) = self._partial(low), self._partial(high)
        moment, square = self._moments
        inside = (n_high - n_low) * grids.step**2 / 12
        under = s_low - 2 * grids.first * m_low + grids.first**2 * n_low
        over = (square - s_high) - 2 * top * (moment - m_high) + top**2 * (self.total - n_high)
        noise = 1e-12 * square
        if not fine:
            return inside + under + over, under + over - noise
        jumps = np.concatenate([[0.0], np.cumsum(np.abs(self._jumps))])
        last = len(self.counts) + 1
        begin, end = (np.clip(np.ceil(e), 0, last).astype(np.intp) for e in (low, high))
        slack = _WIGGLE * grids.step**3 * (jumps[end] - jumps[begin])
        smooth = inside + under + over
        return smooth, smooth - slack - noise

    @cached_property
    def _jumps(self) -> Floats:
        """By how much the density falls at each border between bins."""
        return -np.diff(self.counts, prepend=0.0, append=0.0)

    def _ends(self, grids: Grids) -> tuple[Floats, Floats]:
        """Where the outermost cells of each grid end."""
        return grids.first - grids.step / 2, grids.first + grids.step * (grids.count - 0.5)

    def _partial(self, place: Floats) -> tuple[Floats, Floats, Floats]:
        """Number, Σx and Σx² of the values below ``place``."""
        place = np.clip(place, 0.0, len(self.counts))
        cell = np.minimum(place.astype(np.intp), len(self.counts) - 1)
        number, moment, square = self._below_moments
        density = self.counts[cell]
        return (
            number[cell] + density * (place - cell),
            moment[cell] + density * (place**2 - cell**2.0) / 2,
            square[cell] + density * (place**3 - cell**3.0) / 3,
        )

    @cached_property
    def _below_moments(self) -> tuple[Floats, Floats, Floats]:
        edge = np.arange(len(self.counts) + 1.0)
        parts = (self.counts * np.diff(edge**p) / p for p in (1, 2, 3))
        first, second, third = (np.concatenate([[0.0], np.cumsum(part)]) for part in parts)
        return first, second, third

    def _wiggles(self, grids: Grids) -> Floats:
        """What the exact losses add to the smooth ones.

        The integral of the error up to x is step³ (y/12 + P(y mod 1)) with y = x/step, so the
        density's jumps at bin borders, weighted with P, are all that is left.
        """
        low, high = self._ends(grids)
        border = np.arange(len(self.counts) + 1.0)
        y = (border - low[:, None]) / grids.step[:, None]
        y[(border <= low[:, None]) | (border >= high[:, None])] = 0.0
        y -= np.floor(y)
        y -= 0.5
        periodic = y * y
        periodic -= 0.25
        # P(f) = u³/3 - u/12 with u = f - 1/2.
        periodic *= y
        total: Floats = (periodic @ self._jumps) * (grids.step**3 / 3)
        return total


def first_smallest(losses: Floats) -> int:
    """Index of the first loss that is the smallest up to rounding noise."""
    least = float(losses.min())
    return int(np.argmax(losses <= least * (1 + 1e-12)))
