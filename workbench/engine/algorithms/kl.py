"""KL scale: the weight scale whose quantised histogram diverges least from the real one."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.engine.errors import WrongState
from workbench.engine.numerics.integer import as_float32, guard_scale

BINS = 512
CANDIDATES = 20
_SMOOTHED = 1e-4
_ROWS_AT_ONCE = 2**21


def kl_scale(
    weight: Tensor, bits: int, channel_axis: int | None, *, compat: bool = False
) -> Tensor:
    """Scale per index of ``channel_axis``, or one for the whole weight (None): float32 ``(C,)``.

    Twenty clipping thresholds ``T = A (1 - i/256)`` below ``A = max|w|`` are compared by the
    Kullback-Leibler divergence between the histogram (512 bins, tails gathered at the borders) and
    its ``2^bits - 1`` group means; ``T / 2^(bits-1)`` of the best one is the scale. An all-zero
    channel gets 1. ``compat`` changes only the guard for tiny scales: with 8 bits the rest is the
    reference's, and its 8-bit scales for other widths are a fault (D6).
    Raises ``RuntimeError`` for inf or NaN, ``TypeError`` for integers. Chapter 10 section 8.2.
    """
    values = as_float32(weight)
    if channel_axis is None:
        rows = values.reshape(1, -1)
    else:
        rows = values.movedim(channel_axis, 0).reshape(values.shape[channel_axis], -1)
    largest = rows.abs().amax(dim=1).double()
    if not bool(torch.isfinite(largest).all()):
        raise WrongState("a weight holds inf or NaN", hint="Check the model's checkpoint.")
    counts = _histograms(rows, largest)
    losses = torch.stack([_divergence(counts, i, 2**bits - 1) for i in range(CANDIDATES)])
    best = losses.argmin(dim=0)
    scale = largest * (1.0 - best / (BINS / 2)) / 2 ** (bits - 1)
    scale = torch.where(largest > 0.0, scale, torch.ones_like(scale))
    return guard_scale(scale.to(torch.float32), compat=compat)


def _histograms(rows: Tensor, largest: Tensor) -> Tensor:
    """Counts ``(rows, BINS)``, float64, of each row over ``[-largest, largest]``."""
    counts = torch.zeros(len(rows) * BINS, dtype=torch.int64, device=rows.device)
    width = torch.where(largest > 0.0, largest, torch.ones_like(largest)) / (BINS / 2)
    step = max(1, _ROWS_AT_ONCE // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        position = rows[part].double().add_(largest[part, None]).div_(width[part, None])
        index = position.long().clamp_(0, BINS - 1)
        index += torch.arange(start, start + len(index), device=rows.device)[:, None] * BINS
        counts += torch.bincount(index.reshape(-1), minlength=counts.numel())
    return counts.reshape(-1, BINS).double()


def _divergence(counts: Tensor, clipped: int, groups: int) -> Tensor:
    """KL divergence of each row when ``clipped`` bins at either end are gathered at the borders."""
    size = BINS - 2 * clipped
    real = counts[:, clipped : clipped + size].clone()
    real[:, 0] += counts[:, :clipped].sum(1)
    real[:, -1] += counts[:, clipped + size :].sum(1)
    filled = (real > 0.0).double()
    # Group j begins at bin ceil(j * size / groups).
    starts = -(-torch.arange(groups, device=counts.device) * size // groups)
    marks = torch.zeros(size, dtype=torch.int64, device=counts.device)
    marks.index_add_(0, starts, torch.ones_like(starts))
    group = marks.cumsum(0) - 1
    sums = torch.zeros(len(counts), groups, dtype=torch.float64, device=counts.device)
    members = sums.clone()
    sums.index_add_(1, group, real)
    members.index_add_(1, group, filled)
    quantized = (sums / members.clamp(min=1.0))[:, group] * filled
    p, q = _smooth(real, filled), _smooth(quantized, filled)
    return (p * torch.log(p / q)).sum(1)


def _smooth(histogram: Tensor, filled: Tensor) -> Tensor:
    """Without zeros and with sum 1: empty bins get 1e-4, filled ones an equal share of that more.

    With 512 bins the share stays below 1, so the reference's exception for larger ones never holds.
    """
    present = filled.sum(1, keepdim=True)
    share = _SMOOTHED * (histogram.shape[1] - present) / present.clamp(min=1.0)
    smooth = torch.where(filled > 0.0, histogram + share, _SMOOTHED)
    return smooth / smooth.sum(1, keepdim=True)
