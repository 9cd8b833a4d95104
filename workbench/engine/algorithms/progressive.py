"""float4 weights for float8 products: scaled per channel to float8 first, then per group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from workbench.engine.errors import WrongState
from workbench.engine.numerics.element import exact_float32
from workbench.engine.numerics.float4 import FLOAT4
from workbench.engine.numerics.float8 import FLOAT8
from workbench.engine.numerics.integer import guard_scale


@dataclass(frozen=True)
class ProgressiveScales:
    """``channel`` [N] brings a row to float8's range, ``group`` [N·G, 1] a group to float4's."""

    channel: Tensor
    group: Tensor


def progressive_scales(weight: Tensor, group_size: int) -> ProgressiveScales:
    """Scales of a weight [N, K]; the tail of K is a shorter group. Chapter 25 section 7.1.

    Raises ``RuntimeError`` when the weight holds inf or NaN.
    """
    rows = exact_float32(weight)
    channel = guard_scale(rows.abs().amax(1) / FLOAT8.largest, compat=True)
    largest = _groups(_in_float8(rows, channel), group_size).abs().amax(1, keepdim=True)
    return ProgressiveScales(channel, guard_scale(largest / FLOAT4.largest, compat=True))


def progressive_levels(weight: Tensor, scales: ProgressiveScales, group_size: int) -> Tensor:
    """float4 values [N, K] of a weight, in float32."""
    _check(weight, scales, group_size)
    inner = _in_float8(exact_float32(weight), scales.channel)
    levels = FLOAT4.round(_groups(inner, group_size) / scales.group)
    return levels.reshape(weight.shape[0], -1)[:, : weight.shape[1]]


def from_progressive(levels: Tensor, scales: ProgressiveScales, group_size: int) -> Tensor:
    """``levels`` times both scales, float32 [N, K]."""
    inner = (_groups(levels, group_size) * scales.group).reshape(levels.shape[0], -1)
    return inner[:, : levels.shape[1]] * scales.channel.unsqueeze(1)


def _in_float8(rows: Tensor, channel: Tensor) -> Tensor:
    return FLOAT8.round(rows / channel.unsqueeze(1))


def _groups(rows: Tensor, group_size: int) -> Tensor:
    tail = -rows.shape[1] % group_size
    padded = functional.pad(rows, (0, tail)) if tail else rows
    return padded.reshape(-1, group_size)


def _check(weight: Tensor, scales: ProgressiveScales, group_size: int) -> None:
    rows = weight.shape[0]
    expected = torch.Size([rows]), torch.Size([rows * -(-weight.shape[1] // group_size), 1])
    if (scales.channel.shape, scales.group.shape) != expected:
        raise WrongState(
            f"progressive scales have shapes {list(scales.channel.shape)} and "
            f"{list(scales.group.shape)}; allowed: {list(expected[0])} and {list(expected[1])}"
        )
