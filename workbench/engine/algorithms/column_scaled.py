"""A weight whose columns are scaled while it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class ColumnScaled:
    """``weight`` [N, K] times ``scale`` [1, K], or divided by it, as float32 rows.

    Stands where only rows of a weight are asked for, so that a float32 copy is never whole.
    """

    weight: Tensor
    scale: Tensor
    divide: bool = False

    dtype: ClassVar[torch.dtype] = torch.float32

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def dim(self) -> int:
        """Number of axes."""
        return self.weight.dim()

    def numel(self) -> int:
        """Number of elements."""
        return self.weight.numel()

    def __len__(self) -> int:
        return len(self.weight)

    def __getitem__(self, rows: slice) -> Tensor:
        values = self.weight[rows].detach().to(torch.float32, copy=True)
        return values.div_(self.scale) if self.divide else values.mul_(self.scale)
