"""hifloat8: eight bits whose split into exponent and mantissa follows the magnitude."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.engine.numerics.element import check_codes
from workbench.engine.numerics.lookup import NearestTable, ValueTable

NAN = 0x80
INFINITY = 0x6F
_SIGN = 0x80


def _magnitude(code: int) -> float:
    """Value of a code 0x00…0x7F: dot field, exponent sign and magnitude, mantissa."""
    if code == INFINITY:
        return math.inf
    if code < 0x08:
        return 2.0 ** (code - 23) if code else 0.0
    if code < 0x10:
        return 1 + (code & 7) / 8
    if code < 0x20:
        dot, mantissa_bits = 1, 3
    elif code < 0x40:
        dot, mantissa_bits = 2, 3
    elif code < 0x60:
        dot, mantissa_bits = 3, 2
    else:
        dot, mantissa_bits = 4, 1
    mantissa = code & ((1 << mantissa_bits) - 1)
    field = code >> mantissa_bits
    # The leading 1 of the exponent's magnitude is hidden: dot - 1 of its bits are stored.
    stored = field & ((1 << (dot - 1)) - 1)
    exponent = (1 << (dot - 1)) + stored
    if field >> (dot - 1) & 1:
        exponent = -exponent
    return (1 + mantissa / (1 << mantissa_bits)) * 2.0**exponent


_positive = [_magnitude(code) for code in range(_SIGN)]
_ascending = sorted((value, code) for code, value in enumerate(_positive) if code != INFINITY)
_nearest = NearestTable(
    [value for value, _ in _ascending],
    [code for _, code in _ascending],
    # There is no negative zero: what is too small becomes 0x00.
    [code + _SIGN if code else 0 for _, code in _ascending],
    kept=5,
    ties="away",
    nan_code=NAN,
    infinity=(INFINITY, INFINITY + _SIGN),
)
_values = ValueTable([*_positive, math.nan, *(-value for value in _positive[1:])])


@dataclass(frozen=True)
class HiFloat8:
    """Round half away from zero; finite numbers saturate at ±2^15, ±inf and NaN have codes.

    Chapter 25 section 5.7. Codes are uint8. Zero has one code and no sign.
    """

    name: str = "hifloat8"
    bits: int = 8
    storage: torch.dtype = torch.uint8
    largest: float = 2.0**15
    scale_target: float = 16.0
    dynamic_target: float = 15.0

    def encode(self, x: Tensor) -> Tensor:
        return _nearest.codes(x)

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values of ``codes``, exact in float32, bfloat16 and float16."""
        check_codes(codes, self.storage, self.name)
        return _values(codes, dtype)

    def round(self, x: Tensor) -> Tensor:
        return _nearest.nearest(x)


HIFLOAT8 = HiFloat8()
