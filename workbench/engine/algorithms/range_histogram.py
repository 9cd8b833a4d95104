"""A fine histogram whose range grows with the data, and rounding losses computed from it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workbench.engine.algorithms.top_values import ROW as _ROW
from workbench.engine.algorithms.top_values import row_extremes

FINE_BINS = 1 << 16
"""Most bins of a histogram; with the range's span no power of two, at least half of them."""

_CHUNK = 1 << 18
_BITS = FINE_BINS.bit_length() - 1
_SAMPLE = 1 << 14
_MOST_OUTSIDE = 1 << 16
_LEVELS_AT_ONCE = 1 << 17

Floats = npt.NDArray[np.float64]


class RangeHistogram:
    """Counts on a grid whose bin width is a power of two and whose bin 0 begins at 0.

    Therefore bins merge pairwise, exactly, when a later block needs a wider range. The range is
    guessed from a sample of the first block; the few values outside are kept as they are, so that a
    lone outlier does not cost resolution. Adding costs about 3 ns a value on one core.
    """

    def __init__(self) -> None:
        self.width = 0.0
        self.base = 0
        self.counts = torch.zeros(0, dtype=torch.int64)
        self.outside = torch.empty(0)
        self.total = 0

    def add(self, values: Tensor, extremes: tuple[Tensor, Tensor] | None = None) -> None:
        """Count a flat block of finite floats; ``extremes`` are its ``row_extremes``, if known."""
        if self.width == 0.0:
            self._start(values)
        shift, inverse = torch.tensor(1.0 - self.base), 1.0 / self.width
        shift = shift.to(values.device)
        bins = self.counts.numel()
        size = min(_CHUNK, values.numel())
        position = torch.empty(size, device=values.device)
        index = torch.empty(size, dtype=torch.int32, device=values.device)
        outside = []
        counts = self.counts
        for start in range(0, values.numel(), _CHUNK):
            chunk = values[start : start + _CHUNK].to(torch.float32)
            part = position[: chunk.numel()]
            torch.add(shift, chunk, alpha=inverse, out=part)
            # Everything below the grid falls into the first cell, everything above into the last.
            number = index[: chunk.numel()].copy_(part.clamp_(0, bins + 1))
            found = torch.bincount(number, minlength=bins + 2)
            counts += found[1:-1]
            if int(found[0] + found[-1]):
                rows = None
                if extremes is not None:
                    first = start // _ROW
                    rows = tuple(e[first : first + _CHUNK // _ROW] for e in extremes)
                outside.append(self._outside_of(chunk, rows, shift, inverse))
        self.total += values.numel()
        if outside:
            self.outside = torch.cat([self.outside, *outside])
            self._keep_few_outside()

    def losses(self, scales: Floats, lows: Floats, highs: Floats) -> Floats:
        """Summed squared error of each candidate ``clip(RNE(x/s))*s`` with window low to high.

        Inside a bin the density is taken as uniform. Between two rounding borders the error is
        a quadratic of the level, so prefix sums of count and of value are all that is needed.
        """
        counts, base = self._used()
        cells = np.arange(len(counts)) + (base + 0.5)
        below = np.cumsum(counts)
        weighted = counts * cells
        below_sum = np.cumsum(weighted)
        number, moment = float(below[-1]), float(below_sum[-1]) * self.width
        square = (float(weighted @ cells) + number / 12) * self.width**2
        below -= counts
        below_sum -= weighted

        # Σ over levels of (level² n − 2 level Σx) by parts: only sums below each border are needed.
        first, last = np.rint(lows / scales), np.rint(highs / scales)
        top = last * scales
        result = square + top * (top * number - 2 * moment)
        borders = int((last - first).max())
        block = max(1, _LEVELS_AT_ONCE // max(1, borders))
        for start in range(0, len(scales), block):
            rows = slice(start, start + block)
            level = first[rows, None] + np.arange(1, borders + 1)
            place = (level - 0.5) * (scales[rows, None] / self.width) - base
            np.clip(place, 0.0, len(counts), out=place)
            cell = np.minimum(place.astype(np.intp), len(counts) - 1)
            part = place - cell
            mass = part * counts[cell]
            under = below[cell] + mass
            under_sum = below_sum[cell] + mass * (cell + base + part / 2)
            scale = scales[rows]
            terms = 2 * self.width * under_sum - scale[:, None] * (2 * level - 1) * under
            terms[level > last[rows, None]] = 0.0
            result[rows] += scale * terms.sum(axis=1)
        if self.outside.numel():
            x = self.outside.double().numpy()
            for i, (s, low, high) in enumerate(zip(scales, lows, highs, strict=True)):
                result[i] += float(((np.rint(np.clip(x, low, high) / s) * s - x) ** 2).sum())
        nonnegative: Floats = np.maximum(result, 0.0)
        return nonnegative

    def _used(self) -> tuple[Floats, int]:
        """Counts from the first bin in use to the last, and the number of that first bin."""
        counts = self.counts.cpu().numpy()
        filled = np.flatnonzero(counts)
        if not len(filled):
            return np.zeros(1), self.base
        start, end = int(filled[0]), int(filled[-1]) + 1
        return counts[start:end].astype(np.float64), self.base + start

    def occupancy(self) -> float:
        """Share of the bins that hold a value, of as many as could."""
        used = int((self.counts > 0).sum())
        return used / max(1, min(self.total, self.counts.numel()))

    def kth_largest(self, k: int) -> float:
        """The ``k``-th largest value, to within a bin."""
        outside = self.outside.double().numpy()
        end = (self.base + self.counts.numel()) * self.width
        above = np.sort(outside[outside >= end])[::-1]
        if k <= len(above):
            return float(above[k - 1])
        return self._value_at(self.total - k + 1 - int((outside < self.base * self.width).sum()))

    def kth_smallest(self, k: int) -> float:
        """The ``k``-th smallest value, to within a bin."""
        outside = self.outside.double().numpy()
        under = np.sort(outside[outside < self.base * self.width])
        return float(under[k - 1]) if k <= len(under) else self._value_at(k - len(under))

    def _value_at(self, rank: int) -> float:
        below = np.cumsum(self.counts.cpu().numpy())
        cell = int(np.searchsorted(below, rank))
        return float((self.base + cell + 0.5) * self.width)

    def _start(self, values: Tensor) -> None:
        sample = values[:: max(1, values.numel() // _SAMPLE)].float()
        # One and a half times the sample's range holds all of most data; the rest is kept apart.
        self.counts = self.counts.to(values.device)
        self._cover(1.5 * float(sample.min()), 1.5 * float(sample.max()))

    def _cover(self, low: float, high: float) -> None:
        """Widen the grid to hold ``low`` to ``high`` and 0."""
        low, high = min(low, 0.0), max(high, 0.0)
        bins = self.counts.numel()
        if bins:
            low = min(low, self.base * self.width)
            high = max(high, (self.base + bins - 1) * self.width)
        # The smallest width keeps its reciprocal finite in float32.
        exponent = max(math.ceil(math.log2(max(high - low, 2.0**-100))) - _BITS, -120)
        width = max(2.0**exponent, self.width)
        base = math.floor(low / width)
        counts = torch.zeros(
            math.floor(high / width) + 1 - base, dtype=torch.int64, device=self.counts.device
        )
        if bins:
            old = torch.arange(self.base, self.base + bins, device=counts.device)
            counts.index_add_(
                0,
                torch.div(old, round(width / self.width), rounding_mode="floor") - base,
                self.counts,
            )
        self.width, self.base, self.counts = width, base, counts

    def _outside_of(
        self, chunk: Tensor, rows: tuple[Tensor, ...] | None, shift: Tensor, inverse: float
    ) -> Tensor:
        bins = self.counts.numel()

        def is_out(values: Tensor) -> Tensor:
            place = torch.add(shift, values, alpha=inverse)
            return (place < 1) | (place >= bins + 1)

        if rows is not None and chunk.numel() % _ROW == 0:
            flagged = is_out(rows[0]) | is_out(rows[1])
            chunk = chunk.view(-1, _ROW)[flagged].reshape(-1)
        return chunk[is_out(chunk)].cpu()

    def _keep_few_outside(self) -> None:
        while self.outside.numel() > _MOST_OUTSIDE:
            # Reach far enough for half of them; the grid then covers most and the list is short.
            x = self.outside
            reach = x.abs().median().item() * 1.25
            self._cover(
                -reach if bool((x < self.base * self.width).any()) else 0.0,
                reach if bool((x > 0).any()) else 0.0,
            )
            total, self.outside = self.total, torch.empty(0)
            self.add(x.to(self.counts.device), row_extremes(x.to(self.counts.device)))
            self.total = total
