"""Four-bit codes, two in a byte or eight in a 32-bit word."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.engine.errors import WrongState, WrongType, WrongValue


def pack_bytes(codes: Tensor, axis: int = -1) -> Tensor:
    """Two codes a byte: the even index of ``axis`` in the low half, the odd one in the high.

    Signed codes (-8…7, two's complement) give int8, uint8 codes (0…15) give uint8. Raises
    ``RuntimeError`` when the axis is odd, ``ValueError`` when a code is out of range. Chapter 25
    sections 5.2 and 5.4.
    """
    packed = _pack(codes, axis, 2)
    return packed.movedim(-1, axis).contiguous()


def unpack_bytes(packed: Tensor, axis: int = -1) -> Tensor:
    """The codes of ``pack_bytes``: int32 from int8, uint8 from uint8."""
    if packed.dtype not in (torch.int8, torch.uint8):
        raise WrongType(f"packed bytes have dtype int8 or uint8, not {packed.dtype}")
    return _unpack(packed.movedim(axis, -1), axis, signed=packed.dtype == torch.int8)


def pack_words(codes: Tensor, axis: int = -1) -> Tensor:
    """Eight codes in an int32: index 8 j + i of ``axis`` in bits 4 i … 4 i + 3 of word j.

    Raises as ``pack_bytes``, and ``RuntimeError`` when the axis is no multiple of 8.
    """
    # Four packed bytes are such a word in the byte order of every machine that torch runs on.
    halves = _pack(codes, axis, 8)
    # Viewed flat, because a view of an empty matrix in another size is refused.
    words = halves.reshape(-1).view(torch.int32)
    words = words.view(*halves.shape[:-1], halves.shape[-1] // 4)
    return words.movedim(-1, axis).contiguous()


def unpack_words(packed: Tensor, axis: int = -1, *, signed: bool) -> Tensor:
    """The codes of ``pack_words``: int32 if ``signed``, else uint8."""
    if packed.dtype != torch.int32:
        raise WrongType(f"packed words have dtype int32, not {packed.dtype}")
    halves = packed.movedim(axis, -1).contiguous().view(torch.uint8)
    return _unpack(halves, axis, signed=signed)


def _pack(codes: Tensor, axis: int, group: int) -> Tensor:
    signed = codes.dtype in (torch.int8, torch.int32)
    if not signed and codes.dtype != torch.uint8:
        raise WrongType(f"codes to pack have dtype int8, int32 or uint8, not {codes.dtype}")
    if codes.dim() == 0 or not -codes.dim() <= axis < codes.dim():
        raise WrongValue(f"axis {axis} does not exist in a tensor of {codes.dim()} axes")
    if codes.shape[axis] % group:
        raise WrongState(
            f"{codes.shape[axis]} codes along axis {axis} cannot be packed by {group}; "
            f"allowed: a multiple of {group}"
        )
    low, high = (-8, 7) if signed else (0, 15)
    if codes.numel() and (int(codes.amin()) < low or int(codes.amax()) > high):
        raise WrongValue(f"a code lies outside {low}…{high}, the range of four bits")
    nibbles = codes.movedim(axis, -1).to(torch.int8).view(torch.uint8) & 15
    packed = nibbles[..., 0::2] | nibbles[..., 1::2] << 4
    return packed.view(torch.int8) if signed else packed


def _unpack(packed: Tensor, axis: int, *, signed: bool) -> Tensor:
    halves = packed.view(torch.uint8)
    codes = torch.stack([halves & 15, halves >> 4], -1).flatten(-2)
    if signed:
        # Two's complement: 8…15 stand for -8…-1.
        codes = (codes ^ 8).view(torch.int8) - 8
    unpacked = codes.movedim(-1, axis).contiguous()
    return unpacked.int() if signed else unpacked
