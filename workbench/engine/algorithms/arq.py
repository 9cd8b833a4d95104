"""ARQ: the scale of a weight from its extreme values, no search."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.engine.errors import WrongState
from workbench.engine.numerics.integer import (
    as_float32,
    fake_quantize_weight,
    guard_scale,
    quantize_weight,
)

__all__ = [
    "arq_scale",
    "fake_quantize_weight",
    "from_channel_first",
    "quantize_weight",
    "to_channel_first",
]


def arq_scale(
    weight: Tensor, bits: int, channel_axis: int | None, *, compat: bool = False
) -> Tensor:
    """Scale per index of ``channel_axis``, or one for the whole weight (None): float32 ``(C,)``.

    The largest magnitude falls on the last level of its own side: ``2^(bits-1)`` when the negative
    side is larger, ``2^(bits-1) - 1`` otherwise. The offset of a weight is always 0.
    Raises ``RuntimeError`` for inf or NaN, ``TypeError`` for integers. Chapter 10 section 8.1.
    """
    values = as_float32(weight)
    rows = 1 if channel_axis is None else weight.shape[channel_axis]
    if channel_axis is not None:
        values = values.movedim(channel_axis, 0)
    low, high = values.reshape(rows, -1).aminmax(dim=1)
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        raise WrongState("a weight holds inf or NaN", hint="Check the model's checkpoint.")
    positive = 2 ** (bits - 1) - 1
    levels = torch.where(high.abs() < low.abs(), positive + 1, positive)
    scale = torch.maximum(high.abs(), low.abs()) / levels
    if not compat:
        # Any scale would do for the weights of a channel that is zero; its bias is rounded with it.
        scale = torch.where(scale == 0, scale.max(), scale)
    return guard_scale(scale, compat=compat)


def to_channel_first(weight: Tensor, transposed: bool, groups: int) -> Tensor:
    """A weight with its output channels on axis 0: ``(Cout, Cin/groups, k...)``.

    Weights of transposed convolutions, ``(Cin, Cout/groups, k...)``, are rearranged; others are
    returned as they are. The result may be a view. Chapter 10 section 8.
    """
    if not transposed:
        return weight
    rows, columns, *kernel = weight.shape
    grouped = weight.reshape(groups, rows // groups, columns, *kernel)
    return grouped.transpose(1, 2).reshape(groups * columns, rows // groups, *kernel)


def from_channel_first(weight: Tensor, transposed: bool, groups: int) -> Tensor:
    """The inverse of ``to_channel_first``; the rearrangement is its own inverse."""
    return to_channel_first(weight, transposed, groups)
