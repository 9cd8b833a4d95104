"""What a weight is quantised to: a number format and the elements that share a scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from workbench.engine.algorithms.scale_rule import (
    Factors,
    from_grid,
    on_grid,
    scale_and_offset,
)
from workbench.engine.errors import WrongState, WrongValue
from workbench.engine.numerics.element import BlockFormat, Blocks, ElementFormat, exact_float32
from workbench.engine.numerics.formats import BLOCK_FORMATS, ELEMENT_FORMATS, number_format

Strategy = Literal["tensor", "channel", "group"]


@dataclass(frozen=True)
class QuantizedWeight:
    """Unpacked ``codes`` [N, K] in the format's storage type, and the factors they need."""

    codes: Tensor
    factors: Factors


@dataclass(frozen=True)
class WeightFormat:
    """How the weight [N, K] of a layer is stored.

    ``type`` is a number format's name; ``strategy`` says who shares a scale: all ("tensor", scale
    [1, 1]), an output channel ("channel", [N, 1]) or ``group_size`` neighbours along K of one
    channel ("group", [N, G, 1], the tail of K a shorter group). Block formats (mxfp4, mxfp8)
    bring their scales themselves: bytes [N, G]. Weights with more axes than two (Conv2d) are
    taken as [N, K] and given back in their shape. Chapter 25 sections 3 and 6.

    Everything may run on any device; results are new tensors, the weight is only read.
    """

    type: str
    symmetric: bool = True
    strategy: Strategy = "channel"
    group_size: int | None = None

    def __post_init__(self) -> None:
        number_format(self.type)
        if self.strategy not in ("tensor", "channel", "group"):
            raise WrongValue(
                f"strategy is {self.strategy!r}; allowed: 'tensor', 'channel', 'group'"
            )
        if (self.strategy == "group") != (self.group_size is not None):
            raise WrongValue("group_size is given exactly when strategy is 'group'")
        if self.group_size is not None and self.group_size < 1:
            raise WrongValue(f"group_size is {self.group_size}; allowed: a positive number")
        if self.blocks is not None and self.group_size != self.blocks.block:
            raise WrongValue(
                f"{self.type} has groups of {self.blocks.block}; "
                f"strategy is {self.strategy!r}, group_size {self.group_size}"
            )

    @property
    def elements(self) -> ElementFormat | None:
        """The format of single numbers; None for a block format."""
        return ELEMENT_FORMATS.get(self.type)

    @property
    def blocks(self) -> BlockFormat | None:
        """The block format; None where each number has a code of its own."""
        return BLOCK_FORMATS.get(self.type)

    def factors(self, weight: Tensor) -> Factors:
        """Scale and offset of each tensor, channel or group.

        Raises ``RuntimeError`` when the weight holds inf or NaN.
        """
        rows = _as_rows(weight)
        if self.blocks is not None:
            _check_finite(rows)
            return Factors(self.blocks.encode(rows).scales)
        grouped = self._grouped(rows)
        if self.strategy == "tensor":
            low, high = (value.reshape(1, 1) for value in rows.aminmax())
        else:
            low, high = grouped.aminmax(dim=-1, keepdim=True)
        try:
            return scale_and_offset(high, low, self._element(), symmetric=self.symmetric)
        except WrongState:
            _check_finite(rows)
            raise

    def quantize(self, weight: Tensor, factors: Factors | None = None) -> QuantizedWeight:
        """Codes of ``weight`` with its own factors, or with those given."""
        rows = _as_rows(weight)
        if self.blocks is not None:
            _check_finite(rows)
            blocks = self.blocks.encode(rows)
            return QuantizedWeight(blocks.codes.reshape(weight.shape), Factors(blocks.scales))
        factors = factors or self.factors(weight)
        element = self._element()
        levels = on_grid(self._grouped(rows), factors, element)
        # Levels lie on the grid already: encoding only changes their type.
        codes = element.encode(levels)
        return QuantizedWeight(self._ungrouped(codes, weight), factors)

    def dequantize(self, quantized: QuantizedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values of codes, in ``dtype``."""
        codes, factors = quantized.codes, quantized.factors
        rows = codes.reshape(codes.shape[0], -1)
        if self.blocks is not None:
            return self.blocks.decode(Blocks(rows, factors.scale), dtype).reshape(codes.shape)
        levels = self._grouped(self._element().decode(rows))
        return self._ungrouped(from_grid(levels, factors), codes).to(dtype)

    def fake_quantize(self, weight: Tensor, factors: Factors | None = None) -> Tensor:
        """``weight`` moved to the format's values, in its own dtype and shape.

        ``factors``: instead of the weight's own. A block format takes its own always.
        """
        rows = _as_rows(weight)
        if self.blocks is not None:
            return self.blocks.round(rows.to(weight.dtype)).reshape(weight.shape)
        factors = factors or self.factors(weight)
        values = from_grid(on_grid(self._grouped(rows), factors, self._element()), factors)
        return self._ungrouped(values, weight).to(weight.dtype)

    def _element(self) -> ElementFormat:
        assert self.elements is not None
        return self.elements

    def _grouped(self, rows: Tensor) -> Tensor:
        """[N, K] as [N, G, g] with zeros in the tail, when there are groups."""
        if self.group_size is None:
            return rows
        tail = -rows.shape[1] % self.group_size
        padded = functional.pad(rows, (0, tail)) if tail else rows
        return padded.reshape(rows.shape[0], -1, self.group_size)

    def _ungrouped(self, values: Tensor, like: Tensor) -> Tensor:
        """The inverse of ``_grouped``, in the shape of ``like``."""
        if self.group_size is not None:
            values = values.flatten(1)[:, : like[0].numel()]
        return values.reshape(like.shape)


def _as_rows(weight: Tensor) -> Tensor:
    """float32 [N, K], detached."""
    if weight.dim() < 2 or weight.numel() == 0:
        raise WrongValue(f"a weight has two axes or more and elements, not {list(weight.shape)}")
    return exact_float32(weight).reshape(weight.shape[0], -1)


def _check_finite(rows: Tensor) -> None:
    if not bool(torch.isfinite(rows).all()):
        raise WrongState("a weight holds inf or NaN", hint="Check the model's checkpoint.")
