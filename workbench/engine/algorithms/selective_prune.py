"""2:4 sparsity: of four neighbouring input channels' weights the two largest stay."""

from __future__ import annotations

from itertools import combinations
from math import prod

import torch
from torch import Tensor

_OF = 4
_KEPT = 2


def selective_mask(weight: Tensor, axis: int) -> Tensor:
    """What stays of ``weight``, as a bool tensor of its shape.

    Groups of four lie along ``axis``, the input channels: 1 of Conv2d and Linear, 0 of
    ConvTranspose2d; all other indices are held fixed. The two smallest magnitudes of a group go, of
    equal ones the later. A last group of one or two stays whole, one of three loses its smallest.

    Source: specification chapter 40 section 4.1.
    """
    shape = weight.shape
    sizes = weight.detach().abs()
    if missing := -shape[axis] % _OF:
        # Below every magnitude, so that the padding is what goes first.
        extra = sizes.new_full((*shape[:axis], missing, *shape[axis + 1 :]), -1.0)
        sizes = torch.cat([sizes, extra], dim=axis)
    grouped = sizes.reshape(prod(shape[:axis]), -1, _OF, prod(shape[axis + 1 :]))
    values = grouped.unbind(2)
    beats: dict[tuple[int, int], Tensor] = {}
    for one, other in combinations(range(_OF), 2):
        beats[one, other] = values[one] >= values[other]
        beats[other, one] = ~beats[one, other]
    kept = [_two_of_three(*(beats[i, j] for j in range(_OF) if j != i)) for i in range(_OF)]
    mask = torch.stack(kept, dim=2).reshape(sizes.shape)
    return mask.narrow(axis, 0, shape[axis]).contiguous()


def _two_of_three(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Of four values those are the two largest that are larger than two others."""
    return (a & b) | (c & (a | b))


def is_two_of_four(weight: Tensor, axis: int) -> bool:
    """Whether every whole group of four along ``axis`` has at least two zeros."""
    values = weight.detach().movedim(axis, -1)
    count = values.shape[-1] // _OF
    whole = values[..., : count * _OF].reshape(*values.shape[:-1], count, _OF)
    return bool(((whole != 0).sum(-1) <= _KEPT).all())
