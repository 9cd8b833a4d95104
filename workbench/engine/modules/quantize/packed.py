"""Weight matrices in storage: transposed, four-bit codes packed, tails filled with zeros."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from workbench.engine.numerics.packing import pack_bytes, pack_words, unpack_bytes, unpack_words


def stored_in_words(codes: Tensor, axis: int) -> Tensor:
    """Four-bit codes as int32 words of eight along ``axis``."""
    return pack_words(_filled(codes, axis, 8), axis)


def from_words(packed: Tensor, axis: int, length: int, *, signed: bool) -> Tensor:
    """The first ``length`` codes along ``axis`` of ``stored_in_words``."""
    return unpack_words(packed, axis, signed=signed).narrow(axis, 0, length)


def stored_in_bytes(codes: Tensor, axis: int) -> Tensor:
    """Four-bit codes, two a byte along ``axis``."""
    return pack_bytes(_filled(codes, axis, 2), axis)


def from_bytes(packed: Tensor, axis: int, length: int) -> Tensor:
    """The first ``length`` codes along ``axis`` of ``stored_in_bytes``."""
    return unpack_bytes(packed, axis).narrow(axis, 0, length)


def _filled(codes: Tensor, axis: int, multiple: int) -> Tensor:
    tail = -codes.shape[axis] % multiple
    if not tail:
        return codes
    pads = [0, 0] * codes.dim()
    pads[2 * (codes.dim() - 1 - axis % codes.dim()) + 1] = tail
    return functional.pad(codes, pads)


def transposed(codes: Tensor) -> Tensor:
    """[N, K] as contiguous [K, N]."""
    return codes.t().contiguous()


def spread(groups: Tensor, group_size: int, features: int) -> Tensor:
    """[G, N] repeated to [K, N]: each group's entry for its rows."""
    return torch.repeat_interleave(groups, group_size, dim=0)[:features]
