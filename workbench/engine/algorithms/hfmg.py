"""HFMG: the scale of an activation from a running histogram and a search over its windows."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workbench.engine.algorithms.activation_scale import ActivationScale
from workbench.engine.algorithms.batch import Batch, Extremes, take_batch
from workbench.engine.algorithms.cell_counts import count_cells
from workbench.engine.algorithms.uniform_bins import Grids, UniformBins
from workbench.engine.errors import WrongState
from workbench.engine.numerics.integer import FLT_EPSILON, guard_activation

_SHARE_OF_A_STEP = 100_000
_RELATIVE = 1e-9
# Ranges between these neither overflow float32 nor make its reciprocal do so.
_TINY, _HUGE = 1e-30, 1e38
_NEAR = 4

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class HFMGObserver:
    """Keeps minimum, maximum and ``bins`` counts of one layer's input; nothing else grows.

    The objective is that of chapter 10 section 9.2, computed exactly for the piecewise-uniform
    density. As D14 asks, the full range is a candidate and a symmetric layer's windows are judged
    on the symmetric grid; ``compat`` leaves out both and takes losses below FLT_EPSILON for 0.
    ``sample_limit``: count at most that many values of each batch, its extremes exact.
    ``update`` raises ``TypeError`` for integers and ``RuntimeError`` for inf and NaN.
    """

    def __init__(
        self,
        bits: int,
        asymmetric: bool,
        bins: int = 4096,
        *,
        sample_limit: int | None = None,
        compat: bool = False,
    ) -> None:
        self.bits = bits
        self.asymmetric = asymmetric
        self.compat = compat
        self.sample_limit = sample_limit
        self.low = math.inf
        self.high = -math.inf
        self.counts: Counts = np.zeros(bins, dtype=np.int64)

    def update(self, x: Tensor, known: Extremes | None = None) -> None:
        """Take in one batch: any shape, any floating dtype; ``x`` is not kept or changed.

        ``known``: its extremes, where somebody has found them.
        """
        if x.numel():
            self.absorb(take_batch(x, self.sample_limit, known))

    def absorb(self, batch: Batch) -> None:
        """Take in a batch."""
        low, high = min(self.low, batch.low), max(self.high, batch.high)
        counts = _histogram(batch.values, low, high, len(self.counts))
        if self.low <= self.high:
            counts += _moved(self.counts, (self.low, self.high), (low, high))
        self.counts, self.low, self.high = counts, low, high

    def result(self) -> ActivationScale:
        """Scale and offset of what was seen; ``RuntimeError`` when nothing was."""
        if self.low > self.high:
            raise WrongState("no batch was seen", hint="Run at least one batch through the model.")
        bins = len(self.counts)
        width = (self.high - self.low) / bins
        left, right = windows(self.counts, full_range=not self.compat)
        lows = (self.low + left * width).astype(np.float64)
        highs = (self.low + (right + 1) * width).astype(np.float64)
        best = self._best(lows, highs, width) if width > 0 else 0
        return range_scale(
            float(lows[best]), float(highs[best]), self.bits, self.asymmetric, compat=self.compat
        )

    def _best(self, lows: Floats, highs: Floats, width: float) -> int:
        density = UniformBins(self.counts)
        count = np.full(len(lows), 1 << self.bits)
        if self.asymmetric or self.compat:
            # The window is cut into one cell for each level, which lies at the cell's centre.
            cell = (highs - lows) / count / width
            if self.compat and (cell * width < FLT_EPSILON).any():
                return int(np.argmax(cell * width < FLT_EPSILON))
            first = (lows - self.low) / width + cell / 2
            return density.best(Grids(first, cell, count))
        scales = _symmetric_scale(lows, highs, self.bits)
        first = (-(1 << (self.bits - 1)) * scales - self.low) / width
        return density.best(Grids(first, scales / width, count))


def range_scale(
    low: float, high: float, bits: int, asymmetric: bool, *, compat: bool = False
) -> ActivationScale:
    """The grid that covers ``low`` to ``high``, and 0 as well when it has an offset (8.1)."""
    if not asymmetric:
        scale = float(_symmetric_scale(np.array(low), np.array(high), bits))
        offset = 0
    else:
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / (2**bits - 1)
        offset = -(1 << (bits - 1))
        if scale > 0:
            offset = int(np.rint(offset - low / scale))
    guarded, offset = guard_activation(
        float(np.float32(scale)), offset, bits, asymmetric=asymmetric, compat=compat
    )
    return ActivationScale(guarded, offset)


def windows(
    counts: Counts, *, full_range: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First and last bin of each candidate window, found greedily from the full range inwards.

    Each round drops from one end the bins that hold a hundred-thousandth of the values, from the
    end where these are more bins. ``full_range``: the full range comes first. Never empty.
    """
    below = [0, *np.cumsum(counts).tolist()]
    step = max(1, -(-below[-1] // _SHARE_OF_A_STEP))
    left, right = 0, len(counts) - 1
    found = [(left, right)] if full_range else []
    while right - left > -(-len(counts) // 4):
        from_left = min(bisect_left(below, below[left] + step), right) - left
        from_right = right + 1 - max(bisect_right(below, below[right + 1] - step) - 1, left + 1)
        if from_right >= from_left:
            right -= from_right
        else:
            left += from_left
        found.append((left, right))
    ends = np.array(found or [(left, right)])
    return ends[:, 0], ends[:, 1]


def _symmetric_scale(low: Floats, high: Floats, bits: int) -> Floats:
    """The rule of section 8.1: the larger side's end falls on the last level of that side."""
    last = np.where(np.abs(high) < np.abs(low), 1 << (bits - 1), (1 << (bits - 1)) - 1)
    scale: Floats = np.maximum(np.abs(high), np.abs(low)) / last
    return scale


def _histogram(values: Tensor, low: float, high: float, bins: int) -> Counts:
    """Counts of equal bins from ``low`` to ``high``, the last one closed."""
    if low == high:
        counts = np.zeros(bins, dtype=np.int64)
        counts[bins // 2] = values.numel()
        return counts
    inverse = bins / (high - low)
    if not _TINY < high - low < _HUGE:
        found = torch.bincount(((values.double() - low) * inverse).int(), minlength=bins + 1)
    elif abs(low) <= _NEAR * (high - low):
        found = count_cells(values, -low * inverse, inverse, bins + 1, clamp=False)
    else:
        # Far from zero a product with the inverse would lose the difference.
        near = values.to(torch.float32) - low
        found = count_cells(near, 0.0, inverse, bins + 1, clamp=False)
    # The maximum itself, and what float32 rounds up to it.
    counts = found[:-1].cpu().numpy()
    counts[-1] += int(found[-1])
    return counts


def _moved(counts: Counts, old: tuple[float, float], new: tuple[float, float]) -> Counts:
    """Counts over ``old`` brought to as many bins over ``new``, which holds ``old``.

    A bin over a border is split as if its values were spread evenly, rounded down to the left.
    """
    apart = [(abs(a - b), abs(a)) for a, b in zip(old, new, strict=True)]
    if all(gap <= max(FLT_EPSILON, _RELATIVE * size) for gap, size in apart):
        return counts
    bins = len(counts)
    before, width = (old[1] - old[0]) / bins, (new[1] - new[0]) / bins
    begin = old[0] + before * np.arange(bins)
    first = np.clip(np.floor((begin - new[0]) / width), 0, bins - 1).astype(np.int64)
    last = np.clip(np.floor((begin + before - new[0]) / width), 0, bins - 1).astype(np.int64)
    share = np.ones(bins)
    split = last > first
    if split.any():
        border = new[0] + width * (first[split] + 1)
        share[split] = np.clip((border - begin[split]) / before, 0.0, 1.0)
    whole = (counts * share).astype(np.int64)
    moved = np.zeros(bins, dtype=np.int64)
    np.add.at(moved, first, whole)
    np.add.at(moved, last, counts - whole)
    return moved
