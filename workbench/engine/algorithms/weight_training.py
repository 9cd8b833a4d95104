"""Fake quantisation of weights in training: ARQ with fixed rules, ULQ with trained scales.

Source: specification chapter 30 sections 5.1, 5.4 and 5.5, with A5 and A7 of its "Do better".
One implementation serves all ranks: wherever the output channels lie, a weight is four blocks
``(a, b, c, d)`` with a scale for each ``(a, c)``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workbench.engine.numerics.integer import FLT_EPSILON, SMALLEST_NORMAL, int_range


def weight_scales(
    weight: Tensor,
    bits: int,
    *,
    channel_axis: int | None,
    groups: int = 1,
    flipped: Tensor | None = None,
) -> Tensor:
    """ARQ's scales: float32 ``(Cout,)``, or ``(1,)`` for ``channel_axis`` None.

    The largest magnitude falls on the last level of its side: ``2^(bits-1)`` when the negative side
    is larger, ``2^(bits-1) - 1`` otherwise. ``channel_axis`` is 0, or 1 for the stored weight
    ``(Cin, Cout/groups, k...)`` of a transposed convolution. ``flipped``: bool ``(Cout,)``, the
    channels whose sign a batch norm changes when it is folded (A5). Nothing is read back from an
    accelerator: inf and NaN go through. Chapter 30 sections 5.1 and 5.4.
    """
    blocks = _blocks(weight.detach().to(torch.float32), channel_axis, groups)
    low, high = blocks.amin((1, 3)).reshape(-1), blocks.amax((1, 3)).reshape(-1)
    if flipped is not None:
        low, high = torch.where(flipped, -high, low), torch.where(flipped, -low, high)
    positive = int_range(bits)[1]
    reach = torch.maximum(high.abs(), low.abs())
    scales = reach / (positive + (high.abs() < low.abs()).to(torch.float32))
    return scales.masked_fill(scales < SMALLEST_NORMAL, 1.0)


def arq_weight(
    weight: Tensor, bits: int, *, channel_axis: int | None, groups: int = 1
) -> tuple[Tensor, Tensor]:
    """The fake-quantised weight and its scales; the gradient of the weight goes straight through.

    Result in the shape and dtype of ``weight``, computed in float32. Chapter 30 section 5.4.
    """
    scales = weight_scales(weight, bits, channel_axis=channel_axis, groups=groups)
    quantised: Tensor = _StraightThrough.apply(  # type: ignore[no-untyped-call]
        weight, scales, bits, channel_axis, groups
    )
    return quantised, scales


def ulq_weight(
    weight: Tensor, scales: Tensor, bits: int, *, channel_axis: int | None, groups: int = 1
) -> Tensor:
    """The weight on the grid of trained ``scales``, ``(Cout,)`` or ``(1,)``.

    The gradient of the weight goes straight through, that of the scales is learned step size
    quantisation's. Scales are taken as at least FLT_EPSILON. Chapter 30 section 5.5.
    """
    quantised: Tensor = _UlqWeight.apply(  # type: ignore[no-untyped-call]
        weight, scales, bits, channel_axis, groups
    )
    return quantised


def fake_quantize_blocks(
    weight: Tensor, scales: Tensor, bits: int, channel_axis: int | None, groups: int = 1
) -> Tensor:
    """``clamp(RNE(weight / scale)) * scale`` in float32, in the shape of ``weight``."""
    blocks = _blocks(weight.detach().to(torch.float32), channel_axis, groups)
    step = _per_block(scales, blocks, channel_axis)
    codes = (blocks / step).round_().clamp_(*int_range(bits))
    return codes.mul_(step).view(weight.shape)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scales: Tensor, bits: int, axis: int | None, groups: int
    ) -> Tensor:
        return fake_quantize_blocks(weight, scales, bits, axis, groups).to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, None, None, None, None


class _UlqWeight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scales: Tensor, bits: int, axis: int | None, groups: int
    ) -> Tensor:
        ctx.save_for_backward(weight, scales)
        ctx.settings = (bits, axis, groups)
        positive = scales.detach().to(torch.float32).clamp(min=FLT_EPSILON)
        return fake_quantize_blocks(weight, positive, bits, axis, groups).to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[1]:
            return gradient, None, None, None, None
        weight, scales = ctx.saved_tensors
        bits, axis, groups = ctx.settings
        low, high = int_range(bits)
        blocks = _blocks(weight.to(torch.float32), axis, groups)
        steps = blocks / _per_block(scales.to(torch.float32).clamp(min=FLT_EPSILON), blocks, axis)
        # Beyond the grid the slope is the end level itself, without the value subtracted.
        inside = (steps >= low) & (steps <= high)
        slope = steps.clamp(low, high).round_().sub_(steps.mul_(inside))
        slope.mul_(_blocks(gradient.to(torch.float32), axis, groups))
        # The reference counts one row even where one scale serves all rows.
        row = weight.numel() // (weight.shape[0] if axis in (0, None) else weight.shape[1] * groups)
        total = slope.sum((1, 3)).reshape(scales.shape) / math.sqrt(row * high)
        return gradient, total.to(scales.dtype), None, None, None


def _blocks(weight: Tensor, channel_axis: int | None, groups: int) -> Tensor:
    """``weight`` as ``(a, b, c, d)`` with its output channels along ``a`` and ``c``."""
    if channel_axis is None:
        return weight.reshape(1, 1, 1, -1)
    if channel_axis == 0:
        return weight.reshape(weight.shape[0], 1, 1, -1)
    rows, columns = weight.shape[:2]
    return weight.reshape(groups, rows // groups, columns, -1)


def _per_block(scales: Tensor, blocks: Tensor, channel_axis: int | None) -> Tensor:
    if channel_axis is None:
        return scales.reshape(1, 1, 1, 1)
    return scales.reshape(blocks.shape[0], 1, blocks.shape[2], 1)
