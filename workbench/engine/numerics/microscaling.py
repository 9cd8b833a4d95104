"""mxfp8 and mxfp4: 32 neighbours share a power of two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.engine.errors import WrongValue
from workbench.engine.numerics.element import (
    Blocks,
    ElementFormat,
    exact_float32,
    from_blocks,
    into_blocks,
    saturate,
)
from workbench.engine.numerics.float4 import FLOAT4
from workbench.engine.numerics.float8 import FLOAT8
from workbench.engine.numerics.lookup import ValueTable

BLOCK = 32
NAN_SCALE = 0xFF
_BIAS = 127
_INFINITE = 0x7F800000
_MANTISSA = 0x007FFFFF
_THREE_QUARTERS = 0x00600000

_powers = ValueTable([*(2.0 ** (byte - _BIAS) for byte in range(NAN_SCALE)), float("nan")])
_inverses = ValueTable([*(2.0 ** (_BIAS - byte) for byte in range(NAN_SCALE)), float("nan")])


@dataclass(frozen=True)
class Microscaling:
    """Elements times ``2^e``; one byte ``e + 127`` (E8M0, FF = NaN) a block.

    Chapter 25 sections 5.5 and 5.6. ``exponent`` is that of the largest element; with
    ``round_up`` a block whose maximum lies above 1.75 times a power of two takes the next ``e``.
    A block of zeros has e = 0; one that holds inf or NaN has scale FF, codes 0 and values NaN.
    The tail of an axis that is no multiple of 32 is a shorter block.
    """

    name: str
    element: ElementFormat
    exponent: int
    round_up: bool

    @property
    def bits(self) -> float:
        return self.element.bits + 8 / BLOCK

    @property
    def block(self) -> int:
        return BLOCK

    def scales(self, x: Tensor, axis: int = -1) -> Tensor:
        """Scale bytes (uint8), one per block of ``x`` along ``axis``."""
        blocks = into_blocks(exact_float32(x), axis, BLOCK)
        return self._scales(blocks).movedim(-1, axis).contiguous()

    def encode(self, x: Tensor, axis: int = -1, *, scales: Tensor | None = None) -> Blocks:
        """Codes and scale bytes; ``scales`` (as ``scales()`` gives them) instead of its own."""
        blocks = into_blocks(exact_float32(x), axis, BLOCK)
        scale = self._scales(blocks) if scales is None else _given(scales, blocks, axis)
        scaled = blocks * _inverses(scale).unsqueeze(-1)
        scaled.masked_fill_((scale == NAN_SCALE).unsqueeze(-1), 0.0)
        codes = from_blocks(self.element.encode(scaled), axis, x.shape[axis])
        return Blocks(codes, scale.movedim(-1, axis).contiguous(), axis)

    def decode(self, blocks: Blocks, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values in ``dtype``; those beyond its range become its largest, not inf."""
        codes = into_blocks(self.element.decode(blocks.codes), blocks.axis, BLOCK)
        scale = _given(blocks.scales, codes, blocks.axis)
        return self._values(codes, scale, blocks.axis, blocks.codes.shape[blocks.axis], dtype)

    def round(self, x: Tensor, axis: int = -1, *, scales: Tensor | None = None) -> Tensor:
        """``decode(encode(x))`` in the dtype of ``x``, with ``scales`` instead of its own."""
        blocks = into_blocks(exact_float32(x), axis, BLOCK)
        scale = self._scales(blocks) if scales is None else _given(scales, blocks, axis)
        rounded = self.element.round(blocks * _inverses(scale).unsqueeze(-1))
        return self._values(rounded, scale, axis, x.shape[axis], x.dtype)

    def _scales(self, blocks: Tensor) -> Tensor:
        # As integers NaN is the largest, then inf: one maximum finds both.
        largest = (blocks.view(torch.int32) & (_INFINITE | _MANTISSA)).amax(-1)
        byte = (largest >> 23) - self.exponent
        if self.round_up:
            byte += (largest & _MANTISSA) > _THREE_QUARTERS
        byte = byte.clamp_(0, NAN_SCALE - 1)
        byte = byte.masked_fill_(largest == 0, _BIAS).masked_fill_(largest >= _INFINITE, NAN_SCALE)
        return byte.to(torch.uint8)

    def _values(
        self, elements: Tensor, scale: Tensor, axis: int, length: int, dtype: torch.dtype
    ) -> Tensor:
        values = saturate(elements * _powers(scale).unsqueeze(-1), dtype)
        return from_blocks(values, axis, length)


def _given(scales: Tensor, blocks: Tensor, axis: int) -> Tensor:
    """Scale bytes from outside with their block axis last, held to the blocks' shape."""
    moved = scales.movedim(axis, -1)
    if scales.dtype != torch.uint8 or moved.shape != blocks.shape[:-1]:
        expected = list(blocks.shape[:-1])
        raise WrongValue(
            f"scale bytes must be uint8 with the block axis moved last {expected}, "
            f"not {scales.dtype} {list(moved.shape)}"
        )
    return moved


def pair_scales(scales: Tensor) -> Tensor:
    """Scale bytes [..., blocks] as the matrix products take them: [..., blocks / 2, 2].

    Raises ``ValueError`` when the number of blocks is odd.
    """
    if scales.shape[-1] % 2:
        raise WrongValue(
            f"{scales.shape[-1]} blocks of {BLOCK} cannot be paired; allowed: an even number",
            hint="Keep this layer in its float type or pad its inputs.",
        )
    return torch.unflatten(scales, -1, (-1, 2))


MXFP8 = Microscaling("mxfp8_e4m3fn", FLOAT8, exponent=8, round_up=False)
MXFP4 = Microscaling("mxfp4_e2m1", FLOAT4, exponent=2, round_up=True)
