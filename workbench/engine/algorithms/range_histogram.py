"""A fine histogram whose range grows with the data, and rounding losses computed from it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workbench.engine.algorithms.cell_counts import count_cells
from workbench.engine.algorithms.top_values import ROW, row_extremes
from workbench.engine.algorithms.uniform_bins import Grids, UniformBins

# With two more cells, for what lies outside, a cell's number fits into 16 bits.
MOST_BINS = (1 << 15) - 2
_SAMPLED_ROWS = 64
_MOST_OUTSIDE = 1 << 16

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class RangeHistogram:
    """Counts on a grid of at most ``most_bins`` bins, of which bin 0 begins at 0.

    Therefore bins merge pairwise, exactly, when a later block needs a wider range. The range is
    guessed from a sample of the first block; the few values outside are kept as they are, so that a
    lone outlier does not cost resolution. Adding costs about 1.5 ns a value on one core.
    """

    def __init__(self, most_bins: int = MOST_BINS) -> None:
        self._most = most_bins
        self._density: UniformBins | None = None
        self.width = 0.0
        self.base = 0
        self.counts = torch.zeros(0, dtype=torch.int64)
        self.outside = torch.empty(0)
        self.total = 0

    def add(self, values: Tensor, extremes: tuple[Tensor, Tensor] | None = None) -> None:
        """Count a flat block of finite floats; ``extremes`` are its ``row_extremes``, if known."""
        self._density = None
        low, high = row_extremes(values) if extremes is None else extremes
        least, largest = float(low.amin()), float(high.amax())
        if self.width == 0.0:
            # One and a half times the range of some rows holds all of most data.
            some = slice(None, None, max(8, len(low) // _SAMPLED_ROWS))
            self.counts = self.counts.to(values.device)
            self._cover(
                max(1.5 * float(low[some].amin()), least),
                min(1.5 * float(high[some].amax()), largest),
            )
        self.total += values.numel()
        bins = self.counts.numel()
        # Half a bin less: places are rounded to float32.
        end = (self.base + bins - 0.5) * self.width
        some_outside = largest > end or least < min(0.0, (self.base + 0.5) * self.width)
        found = count_cells(values, 1.0 - self.base, 1.0 / self.width, bins + 2, clamp=some_outside)
        self.counts += found[1:-1]
        if some_outside:
            self._keep(values, self._is_outside(low) | self._is_outside(high))

    def losses(self, scales: Floats, lows: Floats, highs: Floats) -> Floats:
        """Summed squared error of each candidate ``clip(RNE(x/s))*s`` with window low to high.

        Inside a bin the density is taken as uniform.
        """
        first, last = np.rint(lows / scales), np.rint(highs / scales)
        step = scales / self.width
        levels = Grids(first * step - self.base, step, (last - first + 1).astype(np.int64))
        result = self._bins().losses(levels) * self.width**2
        if self.outside.numel():
            x = self.outside.double().numpy()
            for i, (s, low, high) in enumerate(zip(scales, lows, highs, strict=True)):
                result[i] += float(((np.rint(np.clip(x, low, high) / s) * s - x) ** 2).sum())
        return result

    def _bins(self) -> UniformBins:
        if self._density is None:
            self._density = UniformBins(self.counts.cpu().numpy())
        return self._density

    def occupancy(self) -> float:
        """Share of the bins that hold a value, of as many as could."""
        used = int((self.counts > 0).sum())
        return used / max(1, min(self.total, self.counts.numel()))

    def kth_largest(self, k: int) -> float:
        """The ``k``-th largest value, to within a bin."""
        return self.kth_smallest(self.total - k + 1)

    def kth_smallest(self, k: int) -> float:
        """The ``k``-th smallest value, to within a bin."""
        outside = np.sort(self.outside.double().numpy())
        # The grid holds 0.
        under = int(np.searchsorted(outside, 0.0))
        if k <= under:
            return float(outside[k - 1])
        if k > self.total - len(outside) + under:
            return float(outside[k - 1 - self.total])
        return float((self.base + self._bins().holder(k - under) + 0.5) * self.width)

    def _cover(self, low: float, high: float) -> None:
        """Widen the grid to hold ``low`` to ``high`` and 0."""
        low, high = min(low, 0.0), max(high, 0.0)
        bins = self.counts.numel()
        if bins:
            low = min(low, (self.base + 1) * self.width)
            high = max(high, (self.base + bins - 1) * self.width)
        # The smallest width keeps its reciprocal finite in float32.
        width = max((high - low) / (self._most - 4), 2.0**-120)
        if bins:
            width = self.width * 2 ** max(0, math.ceil(math.log2(width / self.width)))
        # A bin more than needed at each end that holds values, for places are rounded to float32.
        base = math.floor(low / width) - (low < 0)
        counts = torch.zeros(
            math.floor(high / width) + 2 - base, dtype=torch.int64, device=self.counts.device
        )
        if bins:
            old = torch.arange(self.base, self.base + bins, device=counts.device)
            # Behind a block of zeros the factor may pass every integer type.
            factor = min(round(width / self.width), 2 * self._most)
            place = torch.div(old, factor, rounding_mode="floor") - base
            counts.index_add_(0, place, self.counts)
        self.width, self.base, self.counts = width, base, counts

    def _is_outside(self, values: Tensor) -> Tensor:
        place = torch.add(torch.tensor(1.0 - self.base), values.float(), alpha=1.0 / self.width)
        return (place < 1) | (place >= self.counts.numel() + 1)

    def _keep(self, values: Tensor, rows: Tensor) -> None:
        """Keep those values of the flagged rows that lie outside the grid."""
        whole = values.numel() // ROW
        kept = [values[: whole * ROW].view(-1, ROW)[rows[:whole]].reshape(-1)]
        if len(rows) > whole and bool(rows[-1]):
            kept.append(values[whole * ROW :])
        near = torch.cat(kept).float()
        self.outside = torch.cat([self.outside, near[self._is_outside(near)].cpu()])
        self._keep_few_outside()

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
