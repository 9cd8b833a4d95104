"""Scale and offset of a value range: the rule of module-level quantisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.engine.errors import WrongState, WrongValue
from workbench.engine.numerics.element import ElementFormat
from workbench.engine.numerics.integer import FLT_EPSILON, guard_scale, int_range
from workbench.engine.numerics.integer_formats import IntegerFormat


@dataclass(frozen=True)
class Factors:
    """``scale`` (float32; E8M0 bytes for block formats) and ``offset`` (int32) of its shape.

    ``offset`` is None for symmetric quantisation.
    """

    scale: Tensor
    offset: Tensor | None = None


def scale_and_offset(
    high: Tensor, low: Tensor, number_format: ElementFormat, *, symmetric: bool = True
) -> Factors:
    """Factors that map ``low`` to ``high``, elementwise, onto the format's range.

    The larger magnitude of a symmetric range falls on the last level of its own side. Scales
    below FLT_EPSILON become 1. Raises ``RuntimeError`` when a factor is not finite,
    ``ValueError`` for an asymmetric float format. Chapter 25 section 6.
    """
    high, low = high.detach().float(), low.detach().float()
    if symmetric:
        magnitude = torch.maximum(high.abs(), low.abs())
        target = torch.full_like(magnitude, number_format.scale_target)
        if isinstance(number_format, IntegerFormat):
            target = torch.where(high.abs() < low.abs(), target + 1, target)
        return Factors(guard_scale(magnitude / target, compat=True))
    if not isinstance(number_format, IntegerFormat):
        raise WrongValue(f"{number_format.name} has no offset; allowed: int8, int4")
    lowest, highest = int_range(number_format.bits)
    high, low = high.clamp(min=0), low.clamp(max=0)
    scale = (high - low) / (highest - lowest)
    offset = (lowest - low / scale).round()
    offset = torch.where(scale < FLT_EPSILON, torch.full_like(offset, lowest), offset)
    if not bool(torch.isfinite(offset).all()):
        raise WrongState(
            "an offset is not finite", hint="Check the model's weights and data for inf and NaN."
        )
    return Factors(guard_scale(scale, compat=True), offset.int())


def on_grid(x: Tensor, factors: Factors, number_format: ElementFormat) -> Tensor:
    """Levels ``round(x / scale + offset)`` in float32: codes of integers, values of floats."""
    scaled = x.detach().float() / factors.scale
    if factors.offset is not None:
        scaled += factors.offset
    if isinstance(number_format, IntegerFormat):
        # In place: a large weight is otherwise copied three times.
        return scaled.round_().clamp_(*int_range(number_format.bits))
    return number_format.round(scaled)


def from_grid(levels: Tensor, factors: Factors) -> Tensor:
    """``(levels - offset) * scale`` in float32; ``levels`` are used up."""
    if factors.offset is not None:
        levels -= factors.offset
    return levels.mul_(factors.scale)


def fake_quantize(x: Tensor, factors: Factors, number_format: ElementFormat) -> Tensor:
    """``x`` moved to the grid and back, in its own dtype; NaN stays NaN."""
    return from_grid(on_grid(x, factors, number_format), factors).to(x.dtype)
