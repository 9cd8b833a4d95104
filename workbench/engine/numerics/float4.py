"""float4_e2m1: sixteen values between -6 and 6."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.engine.numerics.element import check_codes, refuse_nan
from workbench.engine.numerics.lookup import NearestTable, ValueTable

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_SIGN = 8
_NO_CODE = 0xFF  # never seen: encode refuses NaN

_nearest = NearestTable(
    MAGNITUDES,
    range(_SIGN),
    range(_SIGN, 2 * _SIGN),
    kept=3,
    ties="even",
    nan_code=_NO_CODE,
)
_values = ValueTable([*MAGNITUDES, *(-m for m in MAGNITUDES), *[float("nan")] * 240])


@dataclass(frozen=True)
class Float4:
    """Round half to the even mantissa; ±inf and all beyond ±6 saturate; zero keeps its sign.

    Chapter 25 section 5.4. Codes are uint8, one each; ``packing`` puts two in a byte. There is
    no code for NaN: ``encode`` raises ``ValueError``, ``round`` lets NaN through.
    """

    name: str = "float4_e2m1"
    bits: int = 4
    storage: torch.dtype = torch.uint8
    largest: float = MAGNITUDES[-1]
    scale_target: float = MAGNITUDES[-1]
    dynamic_target: float = MAGNITUDES[-1]

    def encode(self, x: Tensor) -> Tensor:
        refuse_nan(x, self.name)
        return _nearest.codes(x)

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values of ``codes``; NaN for a code above 15."""
        check_codes(codes, self.storage, self.name)
        return _values(codes, dtype)

    def round(self, x: Tensor) -> Tensor:
        return _nearest.nearest(x)


FLOAT4 = Float4()
