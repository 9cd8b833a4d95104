"""2:4 sparsity: of four neighbouring input channels' weights the two largest stay."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

_OF = 4
_KEPT = 2


def selective_mask(weight: Tensor, axis: int) -> Tensor:
    """What stays of ``weight``, as a bool tensor of its shape.

    Groups of four lie along ``axis``, the input channels: 1 of Conv2d and Linear, 0 of
    ConvTranspose2d; all other indices are held fixed. The two smallest magnitudes of a group go, of
    equal ones the later. A last group of one or two stays whole, one of three loses its smallest.

    Source: specification chapter 40 section 4.1.
    """
    sizes = weight.detach().abs().movedim(axis, -1)
    count = sizes.shape[-1]
    # Below every magnitude, so that the padding is what goes first.
    groups = pad(sizes, (0, -count % _OF), value=-1.0)
    groups = groups.reshape(*sizes.shape[:-1], -1, _OF)
    this, other = groups.unsqueeze(-1), groups.unsqueeze(-2)
    earlier = torch.ones(_OF, _OF, dtype=torch.bool, device=weight.device).triu(1)
    wins = torch.where(earlier, this >= other, this > other).sum(-1)
    kept = (wins >= _OF - _KEPT).flatten(-2)[..., :count]
    return kept.movedim(-1, axis).contiguous()


def is_two_of_four(weight: Tensor, axis: int) -> bool:
    """Whether every whole group of four along ``axis`` has at least two zeros."""
    values = weight.detach().movedim(axis, -1)
    count = values.shape[-1] // _OF
    whole = values[..., : count * _OF].reshape(*values.shape[:-1], count, _OF)
    return bool(((whole != 0).sum(-1) <= _KEPT).all())
