"""ULQ: fake quantisation of activations between two clip bounds that are trained.

Source: specification chapter 30 sections 5.1 and 5.3, with A8, A13 and A14 of its "Do better". The
forward arithmetic is that of the exported files: ``RNE(x * float32(1 / scale)) + offset`` (index
decision 15).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workbench.engine.algorithms.batch import flat_view
from workbench.engine.errors import WrongType
from workbench.engine.numerics.integer import FLT_EPSILON, SMALLEST_NORMAL, int_range

Number = Any
"""A number on a CPU; elsewhere a 0-d tensor, because reading it would wait for the device."""

_CHUNK = 1 << 18
"""Values worked on at once on a CPU: the scratch tensors of the backward pass stay this small."""


def affine_factors(clip_max: Tensor, clip_min: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and offset of the grid between two bounds: float32 ``()`` each, the offset integral.

    0 always lies on the grid. An empty range gives scale 1 and the lowest offset. Nothing is read
    back from an accelerator. Chapter 30 section 5.1.
    """
    lowest, highest = int_range(bits)
    top = clip_max.detach().to(torch.float32).clamp(min=0.0)
    bottom = clip_min.detach().to(torch.float32).clamp(max=0.0)
    raw = (top - bottom) / (highest - lowest)
    empty = raw < SMALLEST_NORMAL
    scale = raw.masked_fill(empty, 1.0)
    # Behind an empty range ``bottom / scale`` rounds to 0: the lowest offset needs no case.
    offset = (lowest - bottom / scale).round_()
    return scale, offset


def valid_clips(
    clip_max: Tensor, clip_min: Tensor, pre_max: Tensor, pre_min: Tensor, *, fixed_min: bool
) -> tuple[Tensor, Tensor]:
    """Bounds that make a grid: ``clip_max >= 0 >= clip_min``, their difference above FLT_EPSILON.

    An optimiser may push a bound anywhere. Where the two meet both fall back to ``pre_*``, the last
    good ones; otherwise one on the wrong side of 0 falls back alone (section 5.3 step 2, A13).
    ``fixed_min`` holds the lower bound at 0. Shapes ``()``; NaN stays NaN.
    """
    if fixed_min:
        clip_min, pre_min = torch.zeros_like(clip_min), torch.zeros_like(pre_min)
    met = clip_max - clip_min <= FLT_EPSILON
    top = torch.where(met | (clip_max < 0), pre_max, clip_max)
    bottom = torch.where(met | (clip_min > 0), pre_min, clip_min)
    return top.clamp(min=0.0), bottom.clamp(max=0.0)


def ulq_activation(
    x: Tensor, clip_max: Tensor, clip_min: Tensor, bits: int, *, fixed_min: bool = False
) -> Tensor:
    """``x`` on the ``bits``-bit grid between the bounds; same shape, dtype and memory format.

    ``clip_max`` and ``clip_min``: ``()``, in a valid order (``valid_clips``). ``fixed_min`` takes 0
    for the lower one. Differentiable in all three (section 5.3), computed in float32 and without
    waiting for an accelerator. ``TypeError`` for a tensor that holds no floating point numbers.
    """
    if not x.is_floating_point():
        raise WrongType(f"an activation of dtype {x.dtype} cannot be quantised to integers")
    quantised: Tensor = _UlqActivation.apply(x, clip_max, clip_min, bits, fixed_min)  # type: ignore[no-untyped-call]
    return quantised


def pass_through(x: Tensor, *parameters: Tensor) -> Tensor:
    """``x`` as it is; ``parameters`` get gradients of zero.

    A parameter that takes no part in some steps stops DistributedDataParallel.
    """
    same: Tensor = _PassThrough.apply(x, *parameters)  # type: ignore[no-untyped-call]
    return same


@dataclass(frozen=True)
class _Grid:
    """What both passes need.

    Rounded values are integers, so clamping after adding the offset and subtracting it again is
    clamping to ``low`` and ``high``, the codes minus the offset.
    """

    scale: Number
    inverse: Number
    low: Number
    high: Number
    bottom: Number
    top: Number

    @classmethod
    def between(cls, clip_max: Tensor, clip_min: Tensor, bits: int) -> _Grid:
        scale, offset = affine_factors(clip_max, clip_min, bits)
        lowest, highest = int_range(bits)
        parts = (scale, 1.0 / scale, lowest - offset, highest - offset, clip_min, clip_max)
        if _on_host(scale):
            return cls(*(float(part) for part in parts))
        return cls(*(part.detach().to(torch.float32, copy=True) for part in parts))


class _UlqActivation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, clip_max: Tensor, clip_min: Tensor, bits: int, fixed_min: bool
    ) -> Tensor:
        lower = torch.zeros_like(clip_min) if fixed_min else clip_min
        grid = _Grid.between(clip_max, lower, bits)
        y = torch.empty_like(x)
        if y.stride() != x.stride():
            x = x.contiguous()
            y = torch.empty_like(x)
        ctx.save_for_backward(x)
        ctx.grid, ctx.levels = grid, 2**bits - 1
        ctx.places = [(clip.dtype, clip.device) for clip in (clip_max, clip_min)]
        if x.dtype == torch.float32:
            torch.mul(x, grid.inverse, out=y)
            _to_grid(y, grid)
            return y
        return y.copy_(_to_grid(x.float() * grid.inverse, grid))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        grid: _Grid = ctx.grid
        if gradient.stride() != x.stride():
            gradient = torch.empty_like(x, dtype=gradient.dtype).copy_(gradient)
        dx = torch.empty_like(gradient)
        on_cpu = isinstance(grid.scale, float)
        inside, above, below = (_cpu_backward if on_cpu else _backward)(x, gradient, grid, dx)
        # e of a value beyond a bound is the rounding error of the bound itself.
        error = (
            inside
            + above * _rounding_error(grid.top, grid.inverse)
            + below * _rounding_error(grid.bottom, grid.inverse)
        ) / ctx.levels
        clips = (
            torch.as_tensor(value, dtype=dtype, device=device)
            for value, (dtype, device) in zip(
                (error + above, below - error), ctx.places, strict=True
            )
        )
        return dx, *clips, None, None


class _PassThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = [torch.zeros_like(p) for p in parameters]
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *ctx.parameters


def _on_host(tensor: Tensor) -> bool:
    """Whether its value may be read; a compiler would have to leave its graph for it."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _to_grid(t: Tensor, grid: _Grid) -> Tensor:
    """Quotients to grid values, in place."""
    return t.round_().clamp_(grid.low, grid.high).mul_(grid.scale)


def _cpu_backward(
    x: Tensor, gradient: Tensor, grid: _Grid, dx: Tensor
) -> tuple[Number, Number, Number]:
    """Fills ``dx``; returns the sums of ``g e`` between the bounds, and of ``g`` above and below.

    ``e`` is the rounding error in steps. All three tensors have one memory format.
    """
    low, high, inverse = (float(v) for v in (grid.low, grid.high, grid.inverse))
    lowest, highest = (float(np.float32(v) * np.float32(grid.scale)) for v in (low, high))
    # The kernel below passes values strictly between its ends; those on the ends are inside here.
    ends = (
        float(np.nextafter(np.float32(lowest), np.float32(-math.inf))),
        float(np.nextafter(np.float32(highest), np.float32(math.inf))),
    )
    masked = torch.ops.aten.hardtanh_backward
    values_in_order, gradient_in_order, out = map(flat_view, (x, gradient, dx))
    inside = above = below = 0.0
    for start in range(0, out.numel(), _CHUNK):
        part = slice(start, start + _CHUNK)
        values, g = values_in_order[part].float(), gradient_in_order[part].float()
        kept = masked(g, values, *ends)
        out[part] = kept
        above += float(masked(g, values, highest, math.inf).sum())
        below += float(masked(g, values, -math.inf, lowest).sum())
        steps = values * inverse
        error = torch.round(steps).sub_(steps)
        inside += float(torch.dot(kept, error))
    return inside, above, below


def _backward(
    x: Tensor, gradient: Tensor, grid: _Grid, dx: Tensor
) -> tuple[Number, Number, Number]:
    """``_cpu_backward`` in whole tensors and without reading anything back."""
    values, g = x.float(), gradient.float()
    over, under = values > grid.high * grid.scale, values < grid.low * grid.scale
    kept = g.masked_fill(over | under, 0.0)
    dx.copy_(kept)
    steps = values * grid.inverse
    inside = (steps.round() - steps).mul_(kept).sum()
    return inside, (g * over).sum(), (g * under).sum()


def _rounding_error(value: Number, inverse: Number) -> Number:
    steps = value * inverse
    if isinstance(steps, Tensor):
        return steps.round() - steps
    # Bounds that are not finite have gradients that are not, as on a device.
    return round(steps) - steps if math.isfinite(steps) else math.nan
