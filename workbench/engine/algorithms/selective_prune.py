"""2:4 sparsity: of four neighbouring input channels' weights the two largest stay."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

_OF = 4
_KEPT = 2

_CHUNK = 1 << 20
"""Weights worked on at once on a CPU: small enough for its cache, large enough for threads."""
_FEW = 256


def selective_mask(weight: Tensor, axis: int) -> Tensor:
    """What stays of ``weight``, as a bool tensor of its shape.

    Groups of four lie along ``axis``, the input channels: 1 of Conv2d and Linear, 0 of
    ConvTranspose2d; all other indices are held fixed. The two smallest magnitudes of a group go, of
    equal ones the later. A last group of one or two stays whole, one of three loses its smallest.

    Source: specification chapter 40 section 4.1.
    """
    shape = weight.shape
    values = weight.detach()
    if missing := -shape[axis] % _OF:
        # Exceeds nothing and lies behind all others, so that the padding is what goes first.
        extra = values.new_full((*shape[:axis], missing, *shape[axis + 1 :]), torch.nan)
        values = torch.cat([values, extra], dim=axis)
    ranks = _ranks(values.reshape(-1), prod(shape[axis + 1 :]))
    # 2 and 3, the two largest, have the second bit.
    kept = ranks.bitwise_right_shift_(1).view(torch.bool).reshape(values.shape)
    return kept.narrow(axis, 0, shape[axis]).contiguous()


def _ranks(values: Tensor, run: int) -> Tensor:
    """How many of the other three of its group each magnitude outranks, int8.

    ``values``: flat; the four of a group lie ``run`` apart. Each pair is compared where its earlier
    one lies, so that all tensors stay contiguous.
    """
    group = _OF * run
    at_once = _CHUNK if values.device.type == "cpu" else len(values)
    length = min(max(at_once // group, 1) * group, len(values))
    later, *has_partner = _places(run, length, values.device)
    ranks = torch.empty_like(values, dtype=torch.int8)
    sizes, exceeded = values.new_empty(length), values.new_zeros(length)
    flags = values.new_empty(length, dtype=torch.bool)
    for start in range(0, len(values), length):
        block = values[start : start + length]
        count = len(block)
        size = torch.abs(block, out=sizes[:count])
        rank = ranks[start : start + count].copy_(later[:count])
        for step, partner in zip(range(run, group, run), has_partner, strict=True):
            # Comparing into floats and converting takes a CPU a third of comparing into bools.
            torch.gt(size[step:], size[:-step], out=exceeded[: count - step])
            flag = flags[:count].copy_(exceeded[:count]).view(torch.int8)
            flag.bitwise_and_(partner[:count])
            rank.sub_(flag)
            rank[step:].add_(flag[:-step])
    return ranks


def _places(run: int, length: int, device: torch.device) -> Tensor:
    """For flat groups, int8 (4, ``length``): how many members follow, and whether 1, 2, 3 do."""
    later = torch.arange(_OF - 1, -1, -1, dtype=torch.int8, device=device)
    places = torch.stack([later, *((later >= step).to(torch.int8) for step in range(1, _OF))])
    # Twice, since repeating many times what is short is slow.
    some = places.repeat_interleave(run, dim=1).repeat(1, min(_FEW, length // (_OF * run)))
    return some.repeat(1, -(-length // some.shape[1]))[:, :length]


def is_two_of_four(weight: Tensor, axis: int) -> bool:
    """Whether every whole group of four along ``axis`` has at least two zeros."""
    values = weight.detach().movedim(axis, -1)
    count = values.shape[-1] // _OF
    whole = values[..., : count * _OF].reshape(*values.shape[:-1], count, _OF)
    return bool(((whole != 0).sum(-1) <= _KEPT).all())
