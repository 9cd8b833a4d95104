"""2:4 sparsity: of four neighbouring input channels' weights the two largest stay."""

from __future__ import annotations

from itertools import combinations
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Int8 = npt.NDArray[np.int8]

_OF = 4
_KEPT = 2

_CHUNK = 1 << 17
"""Weights worked on at once on a CPU: all of it stays in its cache."""
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
    run = prod(shape[axis + 1 :])
    flat = values.reshape(-1)
    ranks = _ranks(flat, run) if flat.device.type == "cpu" else _ranks_on_device(flat, run)
    # 2 and 3, the two largest, have the second bit.
    kept = ranks.bitwise_right_shift_(1).view(torch.bool).reshape(values.shape)
    return kept.narrow(axis, 0, shape[axis]).contiguous()


def _ranks_on_device(values: Tensor, run: int) -> Tensor:
    """How many of the other three of its group each magnitude outranks, int8.

    ``values``: flat; the four of a group lie ``run`` apart.
    """
    sizes = values.abs().view(-1, _OF, run)
    ranks = torch.zeros_like(sizes, dtype=torch.int8)
    for first, second in combinations(range(_OF), 2):
        exceeds = sizes[:, second] > sizes[:, first]
        ranks[:, second] += exceeds
        ranks[:, first] += ~exceeds
    return ranks.view(-1)


def _ranks(values: Tensor, run: int) -> Tensor:
    """The same on a CPU, on NumPy, which compares floats in a fourth of the time torch takes.

    Each pair is compared where its earlier one lies, so that all arrays stay contiguous.
    """
    # NumPy has no bfloat16.
    flat = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    group = _OF * run
    length = min(max(_CHUNK // group, 1) * group, len(flat))
    later, *has_partner = _places(run, length)
    ranks = np.empty(len(flat), np.int8)
    sizes, exceeds = np.empty(length, flat.dtype), np.zeros(length, bool)
    for start in range(0, len(flat), length):
        block = flat[start : start + length]
        count = len(block)
        size = np.abs(block, out=sizes[:count])
        rank = ranks[start : start + count]
        rank[:] = later[:count]
        for step, partner in zip(range(run, group, run), has_partner, strict=True):
            np.greater(size[step:], size[:-step], out=exceeds[: count - step])
            flag = exceeds[:count].view(np.int8)
            flag &= partner[:count]
            rank -= flag
            rank[step:] += flag[:-step]
    return torch.from_numpy(ranks)


def _places(run: int, length: int) -> Int8:
    """For flat groups, (4, ``length``): how many members follow, and whether 1, 2, 3 do."""
    later = np.arange(_OF - 1, -1, -1, dtype=np.int8)
    places = np.stack([later, *((later >= step).astype(np.int8) for step in range(1, _OF))])
    # Twice, since repeating many times what is short is slow.
    some = np.tile(places.repeat(run, axis=1), min(_FEW, length // (_OF * run)))
    return np.tile(some, -(-length // some.shape[1]))[:, :length]


def is_two_of_four(weight: Tensor, axis: int) -> bool:
    """Whether every whole group of four along ``axis`` has at least two zeros."""
    values = weight.detach().movedim(axis, -1)
    count = values.shape[-1] // _OF
    whole = values[..., : count * _OF].reshape(*values.shape[:-1], count, _OF)
    return bool(((whole != 0).sum(-1) <= _KEPT).all())
