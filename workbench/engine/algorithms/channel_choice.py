"""How many channels of a group go, and which (BalancedL2Norm).

Source: specification chapter 40 sections 3.5 and 3.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, gcd

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 16
"""Channels of which an Ascend device computes whole blocks only."""


def removed_count(
    count: int, ratio: float, *, aligned: bool, stride: int = 1, unit_channels: int = 1
) -> int:
    """How many of ``count`` units go at ``ratio``; a multiple of ``stride``, never all of them.

    ``aligned`` rounds the channels that stay up to a multiple of 16; ``stride`` wins over it. A
    unit is ``unit_channels`` channels.
    """
    keep = count - round(count * ratio)
    if aligned:
        block = ALIGNMENT // gcd(ALIGNMENT, unit_channels)
        keep = max(block * ceil(keep / block), block)
    if stride > 1:
        keep = stride * (keep // stride)
    keep = keep or stride
    return max(count - keep, 0)


def filter_rows(weight: Tensor, axis: int, groups: int = 1) -> Tensor:
    """A weight as [channels of ``axis``, elements]; of a shared axis 1 those of all ``groups``."""
    if axis == 0:
        return weight.flatten(1)
    split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return split.transpose(1, 2).reshape(groups * weight.shape[1], -1)


def unit_norms(rows: Tensor, units: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """L2 norm of each unit's filters divided by their number of elements; NaN where it has none.

    ``rows``: [channels, elements]; ``units``: the unit of each channel, -1 for none.
    """
    squares = rows.detach().to(torch.float64).square().sum(1).cpu().numpy()
    inside = units >= 0
    sums = np.bincount(units[inside], weights=squares[inside], minlength=count)
    sizes = np.bincount(units[inside], minlength=count) * rows.shape[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        norms: NDArray[np.float64] = np.sqrt(sums) / sizes
    return norms


def balanced_scores(norms: Sequence[NDArray[np.float64]], *, compat: bool) -> NDArray[np.float64]:
    """Scores of a group's units: each producer's norms brought to [0, 1], then added.

    A producer whose filters are all equal says nothing. ``compat``: the first producer decides.
    """
    total = np.zeros_like(norms[0])
    for producer in norms[:1] if compat else norms:
        low, high = np.nanmin(producer), np.nanmax(producer)
        if high > low:
            total += np.nan_to_num((producer - low) / (high - low))
    return total


def lowest(
    scores: NDArray[np.float64], cells: Sequence[Sequence[int]], removed: int
) -> tuple[int, ...]:
    """The ``removed`` units of lowest score, the same share of every cell; ties: the lower index.

    ``removed`` times each cell's size must divide by the number of all units.
    """
    total = sum(map(len, cells))
    gone: list[int] = []
    for cell in cells:
        order = sorted(cell, key=lambda unit: (scores[unit], unit))
        gone += order[: len(cell) * removed // total]
    return tuple(sorted(gone))
