"""One batch as an activation algorithm sees it: flat, checked, maybe sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from workbench.engine.algorithms.top_values import row_extremes
from workbench.engine.errors import WrongState, WrongType

# As many float32 values as share a line of the cache.
_RUN = 16


@dataclass(frozen=True)
class Batch:
    """``low`` and ``high`` are those of the whole batch, ``values`` may be a sample of it.

    ``rows``: extremes of each run of ``top_values.ROW`` values; None for a sample.
    """

    values: Tensor
    low: float
    high: float
    rows: tuple[Tensor, Tensor] | None
    seen: int

    @property
    def is_sample(self) -> bool:
        return self.values.numel() < self.seen

    def own(self) -> Batch:
        """The same, of which nothing changes when the tensor it was taken from does."""
        return self if self.is_sample else replace(self, values=self.values.clone())


Extremes = tuple[Tensor, Tensor]
"""Smallest and largest value: of a tensor, or of each run of ``ROW`` values in its memory."""


def take_batch(x: Tensor, sample_limit: int | None = None, known: Extremes | None = None) -> Batch:
    """``x`` of any shape and floating dtype, not empty; a view of it where its layout allows.

    ``sample_limit``: at most about that many values, in short runs spread over all positions.
    ``known``: the extremes of ``x``, if they are; those of its runs are always looked for.
    Errors: ``TypeError`` for integers, ``RuntimeError`` for inf and NaN.
    """
    if not x.is_floating_point():
        raise WrongType(f"an activation of dtype {x.dtype} cannot be quantised to integers")
    values = flat_view(x.detach())
    sampled = sample_limit is not None and values.numel() > sample_limit
    rows = None if sampled else row_extremes(values)
    if rows is not None:
        known = rows[0].amin(), rows[1].amax()
    low, high = map(float, known or values.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise WrongState("an activation holds inf or NaN", hint="Check the calibration data.")
    if sample_limit is None or not sampled:
        return Batch(values, low, high, rows, x.numel())
    step = _coprime_stride(-(-values.numel() // sample_limit), x.shape)
    runs = values[: values.numel() // _RUN * _RUN].view(-1, _RUN)
    return Batch(runs[::step].reshape(-1), low, high, None, x.numel())


def flat_view(x: Tensor) -> Tensor:
    """The values of ``x`` in memory order: a view for every dense layout, else a copy."""
    strides = x.stride()
    order = sorted(range(x.dim()), key=lambda axis: -strides[axis])
    return x.permute(order).reshape(-1)


def _coprime_stride(least: int, shape: Sequence[int]) -> int:
    """A stride that visits all positions along every axis alike: one that shares no factor."""
    product = math.prod(shape)
    stride = least
    while math.gcd(stride, product) != 1:
        stride += 1
    return stride
