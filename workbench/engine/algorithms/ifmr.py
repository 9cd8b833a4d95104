"""IFMR: the scale of an activation by a search over clipping bounds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workbench.engine.algorithms.activation_scale import ActivationScale
from workbench.engine.algorithms.batch import Batch, Extremes, take_batch
from workbench.engine.algorithms.range_histogram import RangeHistogram
from workbench.engine.algorithms.side_by_side import side_by_side
from workbench.engine.algorithms.top_values import TopValues, row_extremes
from workbench.engine.errors import WrongState
from workbench.engine.numerics.integer import FLT_EPSILON, SMALLEST_NORMAL, guard_activation

logger = logging.getLogger("workbench.engine.algorithms")

_SMALL = 1 << 14
_CHUNK = 1 << 16
_STAGE = 1 << 16
_MERGED = 1 << 22
_MOST_TRACKED = 4096
_COARSEST_STEP = 8
_SAMPLE_BINS = 1 << 13
_SAMPLE_KEPT = 1 << 14
_SAMPLE_CANDIDATES = 20

Floats32 = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]


class IFMRObserver:
    """Watches the batches of one layer's input, then finds the scale with the smallest error.

    The objective is that of chapter 10 section 9.1 over all values of all batches. Up to
    ``byte_budget`` bytes of values are kept and the best candidate is decided on them exactly. Data
    beyond that goes into a histogram of 2^15 to 2^16 bins, whose losses are exact to about 1e-4;
    16-bit activations, for which such bins are too coarse, keep every second (fourth, ...) value.
    ``sample_limit``: use at most that many values of each batch, besides its extremes; 8 bits and
    less then look at every third of the default candidates.
    ``update`` raises ``TypeError`` for integers and ``RuntimeError`` for inf and NaN. D13.
    """

    def __init__(
        self,
        bits: int,
        asymmetric: bool,
        max_percentile: float = 0.999999,
        min_percentile: float = 0.999999,
        search_range: tuple[float, float] = (0.7, 1.3),
        search_step: float = 0.01,
        *,
        byte_budget: int,
        sample_limit: int | None = None,
        compat: bool = False,
    ) -> None:
        self.bits = bits
        self.asymmetric = asymmetric
        self.byte_budget = byte_budget
        self.sample_limit = sample_limit
        self.compat = compat
        self._percentiles = (max_percentile, min_percentile)
        self._ratios = candidate_ratios(search_range, search_step)
        self._histogram = RangeHistogram()
        if sample_limit is not None and bits <= 8:
            # What a sample says differs by more than neighbours do, and needs no exact decision.
            self.byte_budget = min(byte_budget, _SAMPLE_KEPT)
            self._ratios = self._ratios[:: max(1, len(self._ratios) // _SAMPLE_CANDIDATES)]
            self._histogram = RangeHistogram(_SAMPLE_BINS)
        self._kept: list[Tensor] = []
        self._kept_bytes = 0
        self._complete = True
        self._stride = 1
        self._total = 0
        self._seen = 0
        self._low, self._high = np.inf, -np.inf
        self._extremes: list[Tensor] = []
        self._stage: Tensor | None = None
        self._staged = 0
        self._tops = (TopValues(1), TopValues(-1))

    @property
    def total(self) -> int:
        """Number of values seen, left out ones included."""
        return self._seen

    def update(self, x: Tensor, known: Extremes | None = None) -> None:
        """Take in one batch: any shape, any floating dtype; ``x`` is not kept or changed.

        ``known``: its extremes, where somebody has found them.
        """
        if x.numel():
            self.absorb(take_batch(x, self.sample_limit, known))

    def absorb(self, batch: Batch) -> None:
        """Take in a batch; its values are not kept or changed."""
        values = batch.values
        if batch.is_sample:
            self._extremes.append(torch.tensor([batch.low, batch.high]))
        self._low, self._high = min(self._low, batch.low), max(self._high, batch.high)
        self._seen += batch.seen
        self._total += values.numel()
        size = values.numel() * values.element_size()
        if self._complete and self._kept_bytes + size <= self.byte_budget:
            self._keep(values)
        elif self.bits > 8:
            self._track(values)
            self._thin_out(values)
        else:
            self._count(values, batch.rows)

    def result(self) -> ActivationScale:
        """Scale and offset of what was seen; ``RuntimeError`` when nothing was."""
        if self._total == 0:
            raise WrongState("no batch was seen", hint="Run at least one batch through the model.")
        if self._stage is not None and self._staged:
            self._add_to_histogram(self._stage[: self._staged])
            self._staged = 0
        if 0 < sum(kept.numel() for kept in self._kept) <= _MERGED:
            self._kept = [torch.cat(self._kept)]
        low, high = self._bounds()
        candidates = self._candidates(low, high)
        best = self._best(candidates)
        scale = float(candidates.scales[best])
        offset = 0
        if self.asymmetric:
            offset = -int(np.rint(np.float32(low) / np.float32(scale))) - (1 << (self.bits - 1))
        raw = float(candidates.unguarded[best])
        if raw != scale:
            return ActivationScale(
                *guard_activation(
                    raw, offset, self.bits, asymmetric=self.asymmetric, compat=self.compat
                )
            )
        return ActivationScale(scale, offset)

    def _keep(self, values: Tensor) -> None:
        self._kept.append(values[:: self._stride].clone())
        self._kept_bytes += self._kept[-1].numel() * values.element_size()

    def _count(self, values: Tensor, extremes: Extremes | None = None) -> None:
        """Put values into bins instead of keeping them; small blocks are gathered first."""
        if self._complete:
            logger.info("over %d bytes of activations: counted in bins", self.byte_budget)
            self._complete = False
            kept, self._kept = self._kept, []
            while kept:
                self._count(kept.pop(0))
        if values.numel() >= _STAGE:
            self._add_to_histogram(values, extremes)
            return
        if self._stage is None:
            self._stage = torch.empty(_STAGE, device=values.device)
        if self._staged + values.numel() > _STAGE:
            self._add_to_histogram(self._stage[: self._staged])
            self._staged = 0
        self._stage[self._staged : self._staged + values.numel()].copy_(values)
        self._staged += values.numel()

    def _add_to_histogram(self, values: Tensor, extremes: Extremes | None = None) -> None:
        if self.sample_limit is None:
            extremes = self._track(values, extremes)
        # How far the largest values of a sample reach, its bins say well enough.
        self._histogram.add(values, extremes)

    def _thin_out(self, values: Tensor) -> None:
        if self._complete:
            self._complete = False
            for kept in self._kept:
                self._track(kept)
        self._keep(values)
        while self._kept_bytes > self.byte_budget and sum(k.numel() for k in self._kept) > _SMALL:
            self._stride *= 2
            self._kept = [kept[::2].clone() for kept in self._kept]
            self._kept_bytes = sum(k.numel() * k.element_size() for k in self._kept)
            logger.info(
                "over %d bytes of activations: one value in %d is kept",
                self.byte_budget,
                self._stride,
            )

    def _track(self, values: Tensor, extremes: Extremes | None = None) -> Extremes:
        """Keep the extreme values of a block as far as the percentiles may ask for them."""
        extremes = extremes or row_extremes(values)
        for top, percentile, rows in zip(
            self._tops, self._percentiles, reversed(extremes), strict=True
        ):
            # A later, larger total asks for deeper values; blocks are alike, four times is ample.
            keep = 4 * _rank(percentile, self._total) + 4
            top.add(values, rows, min(keep, _MOST_TRACKED))
        return extremes

    def _bounds(self) -> tuple[float, float]:
        """``min(0, k-th smallest)`` and ``max(0, k-th largest)``."""
        if self.sample_limit is None:
            low, high = self._percentile_bounds()
        else:
            # A sample may miss the one value that bounds the range, and a bin reach beyond it.
            last = [_rank(percentile, self._seen) == 1 for percentile in self._percentiles]
            low, high = self._low, self._high
            if not all(last):
                inner = self._percentile_bounds()
                high = high if last[0] else min(high, inner[1])
                low = low if last[1] else max(low, inner[0])
        return min(0.0, low), max(0.0, high)

    def _percentile_bounds(self) -> tuple[float, float]:
        if self._complete:
            for kept in self._kept:
                self._track(kept)
        ranks = [_rank(percentile, self._total) for percentile in self._percentiles]
        high, low = (top.kth(k) for top, k in zip(self._tops, ranks, strict=True))
        if high is None or low is None:
            if self._complete or self.bits > 8:
                pool = torch.cat(self._kept).float().cpu().numpy()
                last = len(pool) - 1
                first, second = (_rank(p, len(pool)) - 1 for p in self._percentiles)
                if high is None:
                    high = float(np.partition(pool, last - first)[last - first])
                if low is None:
                    low = float(np.partition(pool, second)[second])
            else:
                high = self._histogram.kth_largest(ranks[0]) if high is None else high
                low = self._histogram.kth_smallest(ranks[1]) if low is None else low
        return low, high

    def _candidates(self, low: float, high: float) -> _Candidates:
        vmin, vmax = np.float32(low), np.float32(high)
        if self.asymmetric:
            tops = self._ratios * vmax
            scales = (tops - vmin) / np.float32(2**self.bits - 1)
            lows = np.full_like(tops, vmin)
        else:
            negative = abs(vmax) < abs(vmin)
            tops = self._ratios * np.maximum(abs(vmax), abs(vmin))
            scales = tops / np.float32(2 ** (self.bits - 1) - (0 if negative else 1))
            lows = -tops
        limit = FLT_EPSILON if self.compat else SMALLEST_NORMAL
        guarded = np.where(scales < np.float32(limit), np.float32(1), scales)
        return _Candidates(scales, guarded, lows, tops)

    def _best(self, candidates: _Candidates) -> int:
        """Index of the first candidate with the smallest loss."""
        if bool((candidates.scales == candidates.scales[0]).all()):
            return 0
        if self._complete and self._total > _SMALL:
            for kept in self._kept:
                self._histogram.add(kept)
        elif self._complete or self.bits > 8:
            return int(np.argmin(self._exact(candidates)))
        if self.bits <= 8 and candidates.scales.min() < _COARSEST_STEP * self._histogram.width:
            logger.warning(
                "the bins are coarse for this activation (outliers far beyond the percentile)"
            )
        losses = self._binned(candidates)
        # Candidates that differ by rounding noise only are a tie, which the first one wins.
        width, reach = self._histogram.width, float(candidates.highs.max())
        noise = self._total * width * (1e-6 * width + 2.0**-23 * reach)
        if not self._complete:
            return int(np.argmax(losses <= losses.min() + noise))
        near = np.flatnonzero(losses <= losses.min() * (1 + self._tolerance()) + noise)
        if len(near) == 1:
            return int(near[0])
        return int(near[np.argmin(self._exact(candidates.take(near)))])

    def _binned(self, candidates: _Candidates) -> Floats64:
        """Losses from the histogram."""
        scales, lows, highs = (
            values.astype(np.float64)
            for values in (candidates.scales, candidates.lows, candidates.highs)
        )
        losses = self._histogram.losses(scales, lows, highs)
        return losses + self._extremes_loss(candidates) if self._extremes else losses

    def _exact(self, candidates: _Candidates) -> Floats64:
        return exact_losses(self._kept, candidates) + self._extremes_loss(candidates)

    def _extremes_loss(self, candidates: _Candidates) -> Floats64:
        """What the extremes of sampled batches add, weighted as single values."""
        if not self._extremes:
            return np.zeros(len(candidates.scales))
        x = torch.cat(self._extremes).numpy()[:, None].astype(np.float64)
        clipped = np.clip(x, candidates.lows, candidates.highs)
        error = np.rint(clipped / candidates.scales) * candidates.scales - x
        return np.asarray((error**2).sum(axis=0) * (self._total / self._seen))

    def _tolerance(self) -> float:
        """How far, relatively, a loss from bins may be from the exact one.

        With w bins a step, data spread over its bins is off by about 1/w^2; data on few
        levels (images, integers) by up to 6/w. At 16 bits the bins are wider than a step, and all
        that is known is the mean rounding error of spread data.
        """
        spread = self._histogram.occupancy() > 0.2
        if self.bits > 8:
            return 0.2 if spread else np.inf
        return 1e-4 if spread else 0.03


@dataclass(frozen=True)
class _Candidates:
    """Scales before and after the guard, and the clipping window of each."""

    unguarded: Floats32
    scales: Floats32
    lows: Floats32
    highs: Floats32

    def take(self, index: npt.NDArray[np.intp]) -> _Candidates:
        return _Candidates(
            self.unguarded[index], self.scales[index], self.lows[index], self.highs[index]
        )


def candidate_ratios(search_range: tuple[float, float], step: float) -> Floats32:
    """Half-open range of ratios, with the float rounding of the reference: 61 by default."""
    start, end = search_range
    ratios: Floats32 = torch.arange(start, end, step, dtype=torch.float32).numpy()
    return ratios


def exact_losses(kept: Sequence[Tensor], candidates: _Candidates) -> Floats64:
    """Summed squared error of each candidate over all kept values, about 1 ns per value each."""
    rows = list(
        zip(
            candidates.lows.tolist(),
            candidates.highs.tolist(),
            candidates.scales.tolist(),
            strict=True,
        )
    )

    def losses(chunk: Tensor) -> Floats64:
        chunk = chunk.to(torch.float32)
        error = torch.empty_like(chunk)
        found = []
        for low, high, scale in rows:
            torch.clamp(chunk, low, high, out=error)
            error.div_(scale).round_().mul_(scale).sub_(chunk)
            found.append(float(torch.dot(error, error)))
        return np.array(found)

    # Summed in their order: the result does not depend on the number of threads.
    chunks = [chunk for values in kept for chunk in torch.split(values, _CHUNK)]
    return np.asarray(np.sum(side_by_side(losses, chunks), axis=0, dtype=np.float64))


def _rank(percentile: float, total: int) -> int:
    """Which largest value bounds the range: 1 for a percentile of 1."""
    if 1 - percentile < FLT_EPSILON:
        return 1
    return max(1, total - int(percentile * total))
