"""int8 and int4 as formats: round half to even, saturate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.engine.numerics.element import check_codes, exact_float32, refuse_nan
from workbench.engine.numerics.integer import int_range


@dataclass(frozen=True)
class IntegerFormat:
    """Signed integers of so many bits. Chapter 25 sections 5.1 and 5.2.

    An offset is added before rounding, so the caller passes ``x / scale + offset``.
    """

    name: str
    bits: int
    storage: torch.dtype

    @property
    def largest(self) -> float:
        return float(int_range(self.bits)[1])

    @property
    def scale_target(self) -> float:
        return self.largest

    @property
    def dynamic_target(self) -> float:
        return self.largest

    def encode(self, x: Tensor) -> Tensor:
        """Codes of ``x``; ``ValueError`` when it holds NaN."""
        refuse_nan(x, self.name)
        return self._on_grid(x).to(self.storage)

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        check_codes(codes, self.storage, self.name)
        return codes.to(dtype)

    def round(self, x: Tensor) -> Tensor:
        return self._on_grid(x).to(x.dtype)

    def _on_grid(self, x: Tensor) -> Tensor:
        return exact_float32(x).round().clamp_(*int_range(self.bits))


INT8 = IntegerFormat("int8", 8, torch.int8)
INT4 = IntegerFormat("int4", 4, torch.int32)
"""Unpacked codes travel as int32; ``packing`` makes them small."""
