"""Integer grids: rounding, clipping and the guard for scales of empty tensors."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from workbench.engine.errors import WrongState, WrongType

logger = logging.getLogger("workbench.engine.numerics")

FLT_EPSILON = 1.1920928955078125e-07
SMALLEST_NORMAL = 1.1754943508222875e-38


def int_range(bits: int) -> tuple[int, int]:
    """Smallest and largest code of a signed ``bits``-bit integer."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def as_float32(x: Tensor) -> Tensor:
    """``x`` detached, in float32; ``TypeError`` when it holds no floating point numbers."""
    if not x.is_floating_point():
        raise WrongType(f"a tensor of dtype {x.dtype} cannot be quantised; allowed: floating point")
    return x.detach().to(torch.float32)


def reciprocal(scale: float) -> float:
    """``float32(1 / float32(scale))``: what the quantise operator multiplies by."""
    return float(1.0 / torch.tensor(scale, dtype=torch.float32))


def quantize_activation(x: Tensor, scale: float, offset: int, bits: int) -> Tensor:
    """Codes ``clip(RNE(x / scale) + offset)`` of an activation, held in float32.

    The quotient is ``x * float32(1 / scale)`` and the offset is added after rounding, as the
    operators do (chapter 10 section 2).
    """
    qmin, qmax = int_range(bits)
    codes = as_float32(x) * reciprocal(scale)
    return codes.round_().add_(offset).clamp_(qmin, qmax)


def dequantize_activation(codes: Tensor, scale: float, offset: int) -> Tensor:
    """Real values ``(codes - offset) * scale`` in float32."""
    return (codes.to(torch.float32) - offset).mul_(_float32(scale))


def fake_quantize_activation(x: Tensor, scale: float, offset: int, bits: int) -> Tensor:
    """``x`` moved to the grid of ``scale`` and ``offset`` and back, in float32."""
    codes = quantize_activation(x, scale, offset, bits)
    return codes.sub_(offset).mul_(_float32(scale))


def quantize_weight(weight: Tensor, scale: Tensor, bits: int, axis: int | None) -> Tensor:
    """Codes ``clip(RNE(weight / scale))`` in float32, by true division.

    ``scale`` holds one value, or one per index of ``axis`` (None: one value for all).
    """
    qmin, qmax = int_range(bits)
    codes = as_float32(weight) / along_axis(scale, weight.dim(), axis)
    return codes.round_().clamp_(qmin, qmax)


def fake_quantize_weight(weight: Tensor, scale: Tensor, bits: int, axis: int | None) -> Tensor:
    """``quantize_weight`` times ``scale``, in float32."""
    codes = quantize_weight(weight, scale, bits, axis)
    return codes.mul_(along_axis(scale, weight.dim(), axis))


def along_axis(values: Tensor, rank: int, axis: int | None) -> Tensor:
    """``values`` shaped so that they broadcast along ``axis`` of a tensor of ``rank`` axes."""
    flat = values.reshape(-1).to(torch.float32)
    if axis is None or flat.numel() == 1:
        return flat.reshape([1] * rank)
    shape = [1] * rank
    shape[axis] = flat.numel()
    return flat.reshape(shape)


def guard_scale(scale: Tensor, *, compat: bool = False) -> Tensor:
    """Replace the scale of a tensor that is zero everywhere by 1.

    By default only scales below the smallest normal float32 are replaced; with ``compat`` all
    below FLT_EPSILON, as the reference does (chapter 10 section 2 and D10).
    Raises ``RuntimeError`` when a scale or its reciprocal is not finite.
    """
    limit = FLT_EPSILON if compat else SMALLEST_NORMAL
    guarded = torch.where(scale < limit, torch.ones_like(scale), scale)
    if not bool((torch.isfinite(guarded) & torch.isfinite(1.0 / guarded)).all()):
        raise WrongState(
            "a scale is not finite", hint="Check the model's weights and data for inf and NaN."
        )
    return guarded


def guard_activation(
    scale: float, offset: int, bits: int, *, asymmetric: bool, compat: bool = False
) -> tuple[float, int]:
    """``guard_scale`` for one activation: a replaced scale comes with the lowest offset."""
    guarded = float(guard_scale(torch.tensor(scale, dtype=torch.float32), compat=compat))
    if guarded == 1.0 and scale < FLT_EPSILON:
        logger.warning("an activation is zero everywhere (scale %g): its scale is set to 1", scale)
        offset = int_range(bits)[0] if asymmetric else 0
    return guarded, offset


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))
