"""IFMR for every channel of the last axis at once."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from workbench.engine.algorithms.ifmr import candidate_ratios
from workbench.engine.algorithms.tokens import ChannelRanges, TokenSample
from workbench.engine.numerics.integer import FLT_EPSILON

logger = logging.getLogger("workbench.engine.algorithms")

_CHUNK = 1 << 16


class ChannelIFMRObserver:
    """One search of chapter 25 section 18 per index of the last axis, all side by side.

    Up to ``byte_budget`` bytes of tokens are kept. Of more than that a fair sample is: the losses
    are then those of the sample, while each channel's extremes stay exact. ``update`` raises
    ``TypeError`` for integers, ``RuntimeError`` for inf and NaN and ``ValueError`` when the last
    axis changes its length.
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
        seed: int = 0,
    ) -> None:
        self.bits = bits
        self.asymmetric = asymmetric
        self._percentiles = (max_percentile, min_percentile)
        self._ratios = torch.from_numpy(candidate_ratios(search_range, search_step))
        self._byte_budget = byte_budget
        self._generator = torch.Generator().manual_seed(seed)
        self._ranges: ChannelRanges | None = None
        self._sample: TokenSample | None = None

    def update(self, x: Tensor) -> None:
        """Take in one batch ``(..., C)``."""
        if x.numel() == 0:
            return
        ranges, sample = self.prepare(x.shape[-1], x.device)
        ranges.update(x)
        sample.update(x)

    def result(self) -> tuple[Tensor, Tensor]:
        """Scales (float32) and offsets (int64), each ``(C,)``; ``RuntimeError`` without data."""
        ranges, sample = self.prepare(0)
        tokens = sample.values
        if len(tokens) < ranges.tokens:
            logger.warning(
                "%d tokens a channel are more than fit into %d bytes: the errors are those of a "
                "sample of %d",
                ranges.tokens,
                self._byte_budget,
                len(tokens),
            )
        high, low = (
            _kth_largest(sign * tokens, extreme, percentile, ranges.tokens).clamp_min(0) * sign
            for sign, extreme, percentile in zip(
                (1, -1), (ranges.high, -ranges.low), self._percentiles, strict=True
            )
        )
        ratios = self._ratios.to(tokens.device)[:, None]
        levels = 1 << (self.bits - 1)
        if self.asymmetric:
            highs = ratios * high
            lows = low.expand_as(highs)
            scales = (highs - low) / (2 * levels - 1)
        else:
            highs = ratios * torch.maximum(high, -low)
            lows = -highs
            scales = highs / torch.where(high < -low, levels, levels - 1)
        scales = torch.where(scales < FLT_EPSILON, torch.ones_like(scales), scales)
        best = _losses(tokens, scales, lows, highs).argmin(0, keepdim=True)
        scale = scales.gather(0, best)[0]
        offset = torch.zeros_like(scale)
        if self.asymmetric:
            offset = -(low / scale).round() - levels
        return scale, offset.long()

    def prepare(
        self, channels: int, device: torch.device | None = None
    ) -> tuple[ChannelRanges, TokenSample]:
        """What watches ``channels`` channels, made at the first call."""
        if self._ranges is None or self._sample is None:
            limit = max(1, self._byte_budget // (4 * max(1, channels)))
            self._ranges = ChannelRanges(channels, device)
            self._sample = TokenSample(channels, limit, generator=self._generator)
        return self._ranges, self._sample


def _kth_largest(tokens: Tensor, largest: Tensor, percentile: float, total: int) -> Tensor:
    """``(C,)``: the k-th largest of ``total`` values, of which ``tokens`` may be a sample."""
    if 1 - percentile < FLT_EPSILON or total - int(percentile * total) <= 1:
        return largest
    rank = max(1, len(tokens) - int(percentile * len(tokens)))
    return tokens.topk(rank, dim=0).values[-1]


def _losses(tokens: Tensor, scales: Tensor, lows: Tensor, highs: Tensor) -> Tensor:
    """Summed squared error ``(candidates, C)`` in float64, in chunks that stay in the cache."""
    losses = torch.zeros(scales.shape, dtype=torch.float64, device=tokens.device)
    rows = max(1, _CHUNK // max(1, tokens.shape[1]))
    for start in range(0, len(tokens), rows):
        chunk = tokens[start : start + rows]
        error = torch.empty_like(chunk)
        for i in range(len(scales)):
            torch.clamp(chunk, lows[i], highs[i], out=error)
            error.div_(scales[i]).round_().mul_(scales[i]).sub_(chunk)
            losses[i] += error.square_().sum(0)
    return losses
