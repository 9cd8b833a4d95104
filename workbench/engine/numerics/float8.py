"""float8_e4m3fn: 1 sign, 4 exponent, 3 mantissa bits; no infinity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.engine.numerics.element import check_codes, exact_float32
from workbench.engine.numerics.lookup import NearestTable, ValueTable

LARGEST = 448.0
_NAN = 0x7F
_SIGN = 0x80


def _magnitude(code: int) -> float:
    """Value of a code 0x00…0x7E."""
    exponent, mantissa = code >> 3, code & 7
    return (mantissa if exponent == 0 else 8 + mantissa) * 2.0 ** (max(exponent, 1) - 10)


_magnitudes = [_magnitude(code) for code in range(_NAN)]
_nan = float("nan")
# Torch reads float8 ten times more slowly than it writes it; looking up is as exact.
_values = ValueTable([*_magnitudes, _nan, *(-m for m in _magnitudes), _nan])
_nearest = NearestTable(
    _magnitudes,
    range(_NAN),
    range(_SIGN, _SIGN + _NAN),
    kept=5,
    ties="even",
    nan_code=_NAN,
)


@dataclass(frozen=True)
class Float8:
    """Round half to even; ±inf and all beyond ±448 saturate; NaN has codes 7F and FF.

    Chapter 25 section 5.3. Codes are tensors of ``torch.float8_e4m3fn``.
    """

    name: str = "float8_e4m3fn"
    bits: int = 8
    storage: torch.dtype = torch.float8_e4m3fn
    largest: float = LARGEST
    scale_target: float = LARGEST
    dynamic_target: float = LARGEST

    def encode(self, x: Tensor) -> Tensor:
        # What torch's cast makes of numbers out of range depends on its version.
        return exact_float32(x).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        check_codes(codes, self.storage, self.name)
        return _values(codes.view(torch.uint8), dtype)

    def round(self, x: Tensor) -> Tensor:
        return _nearest.nearest(x)


FLOAT8 = Float8()
