"""hifloat4: 64 neighbours share a scale of three levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.engine.errors import WrongState, WrongValue
from workbench.engine.numerics.element import (
    Blocks,
    check_codes,
    exact_float32,
    from_blocks,
    into_blocks,
    saturate,
)
from workbench.engine.numerics.lookup import ValueTable

BLOCK = 64
NAN_SCALE = 0xFF
_LEAST_EXPONENT = -48
_SMALLEST = 2.0**_LEAST_EXPONENT
_LARGEST = 1.5 * 2.0**15
_SIGN = 8

# E6M2: 2^e (1 + m / 4), byte (e + 48) 4 + m.
_first_level = ValueTable(
    [2.0 ** (_LEAST_EXPONENT + byte // 4) * (1 + byte % 4 / 4) for byte in range(NAN_SCALE)]
    + [float("nan")]
)
_elements = ValueTable(
    [code / 4 for code in range(_SIGN)]
    + [-code / 4 for code in range(_SIGN)]
    + [float("nan")] * 240
)


@dataclass(frozen=True)
class HiFloat4:
    """Sign and 3-bit magnitude, times 1, 2 or 4 per four elements, times E6M2 per 64.

    Chapter 25 section 5.8; products are float32, rounded to bfloat16 where the chapter says.
    Codes are uint8, ``8 * sign + c``. Scales are uint8 with an axis of 4 at the end: E6M2, a bit
    per 8 elements, and two bytes with a bit per 4; bit 7 first. The axis must be a multiple of
    64 (``RuntimeError``). A block that holds inf or NaN becomes NaN.
    """

    name: str = "hifloat4"
    largest: float = 7 * _LARGEST

    @property
    def bits(self) -> float:
        return 4 + 32 / BLOCK

    @property
    def block(self) -> int:
        return BLOCK

    def encode(self, x: Tensor, axis: int = -1) -> Blocks:
        values = _blocks(exact_float32(x), axis)
        magnitude = values.abs()
        quads = torch.unflatten(magnitude, -1, (16, 4)).amax(-1)
        eights = torch.unflatten(quads, -1, (8, 2)).amax(-1)
        largest = eights.amax(-1)
        broken = ~torch.isfinite(largest)

        seventh = float(torch.tensor(1 / 7, dtype=torch.bfloat16))
        first = _bf16(largest * seventh).clamp_(_SMALLEST, _LARGEST)
        # Half to even on three significant bits of a bfloat16; a carry moves the exponent.
        bits = first.view(torch.int32)
        bits = (bits + 0xFFFFF + (bits >> 21 & 1)) >> 21
        byte = bits - ((127 + _LEAST_EXPONENT) << 2)
        inverse = _bf16(1.0 / (bits << 21).view(torch.float32)).unsqueeze(-1)

        second = eights * inverse >= 4
        half = _halved(second).repeat_interleave(2, -1)
        third = quads * inverse * half >= 2
        factor = (inverse * half * _halved(third)).repeat_interleave(4, -1)
        codes = _bf16(magnitude * factor).mul_(4).add_(0.5).floor_().clamp_(0, 7)
        codes += _SIGN * torch.signbit(values)
        codes = codes.masked_fill_(broken.unsqueeze(-1), 0).to(torch.uint8)

        scales = torch.cat([byte.unsqueeze(-1), _to_bits(second), _to_bits(third)], -1)
        nothing = torch.tensor([NAN_SCALE, 0, 0, 0], device=x.device)
        scales = torch.where(broken.unsqueeze(-1), nothing, scales).to(torch.uint8)
        # The block axis back to its place, the four bytes last.
        scales = scales.movedim(-2, axis if axis >= 0 else axis - 1).contiguous()
        return Blocks(from_blocks(codes, axis, x.shape[axis]), scales, axis)

    def decode(self, blocks: Blocks, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values in ``dtype``; those beyond its range become its largest, not inf."""
        axis = blocks.axis
        check_codes(blocks.codes, torch.uint8, self.name)
        elements = _blocks(_elements(blocks.codes), axis)
        scales = blocks.scales.movedim(axis if axis >= 0 else axis - 1, -2)
        if scales.dtype != torch.uint8 or scales.shape != (*elements.shape[:-1], 4):
            raise WrongValue(
                f"scales of {self.name} must be uint8 with the block axis before the last "
                f"{[*elements.shape[:-1], 4]}, not {scales.dtype} {list(scales.shape)}"
            )
        levels = _bits(scales[..., 1:2]).repeat_interleave(2, -1) + _bits(scales[..., 2:])
        factor = (1 << levels) * _first_level(scales[..., :1])
        values = saturate(elements * factor.repeat_interleave(4, -1), dtype)
        return from_blocks(values, axis, blocks.codes.shape[axis])

    def round(self, x: Tensor, axis: int = -1) -> Tensor:
        return self.decode(self.encode(x, axis), x.dtype)


def _blocks(x: Tensor, axis: int) -> Tensor:
    blocks = into_blocks(x, axis, BLOCK)
    if x.shape[axis] % BLOCK:
        raise WrongState(
            f"hifloat4 needs a multiple of {BLOCK} elements along axis {axis}, not {x.shape[axis]}",
            hint="Keep this layer in its float type or pad it.",
        )
    return blocks


def _bf16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(torch.float32)


def _halved(bit: Tensor) -> Tensor:
    return 1.0 - 0.5 * bit.to(torch.float32)


def _to_bits(flags: Tensor) -> Tensor:
    """Flags [..., 8 n] as n numbers, the first flag in bit 7."""
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.int32, device=flags.device)
    return (torch.unflatten(flags, -1, (-1, 8)) * weights).sum(-1, dtype=torch.int32)


def _bits(packed: Tensor) -> Tensor:
    shifts = torch.arange(7, -1, -1, dtype=torch.int32, device=packed.device)
    return (packed.int().unsqueeze(-1) >> shifts & 1).flatten(-2)


HIFLOAT4 = HiFloat4()
