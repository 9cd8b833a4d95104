"""What a weight is quantised to: a number format and the elements that share a scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from workbench.engine.algorithms.column_scaled import ColumnScaled
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

_CHUNK = 1 << 18
"""Weights are taken by rows of about so many elements: of a whole layer in float32 the steps of
rounding are several times the layer's size. Small pieces also fit again into the gaps of the heap:
of larger ones each layer may leave a gap behind that no later one can use."""


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

    Everything may run on any device; results are new tensors, the weight is only read, and
    temporaries are those of a few rows.
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

    def factors(self, weight: Tensor | ColumnScaled) -> Factors:
        """Scale and offset of each tensor, channel or group.

        Raises ``RuntimeError`` when the weight holds inf or NaN.
        """
        _check_weight(weight)
        if self.blocks is not None:
            scales = [self._encoded(_as_rows(weight[rows])).scales for rows in row_chunks(weight)]
            return Factors(torch.cat(scales))
        extremes = [self._extremes(_as_rows(weight[rows])) for rows in row_chunks(weight)]
        low, high = (torch.cat(values) for values in zip(*extremes, strict=True))
        if self.strategy == "tensor":
            low, high = low.amin().reshape(1, 1), high.amax().reshape(1, 1)
        try:
            return scale_and_offset(high, low, self._element(), symmetric=self.symmetric)
        except WrongState:
            if not bool(torch.isfinite(torch.stack([low, high])).all()):
                raise _not_finite() from None
            raise

    def quantize(
        self, weight: Tensor | ColumnScaled, factors: Factors | None = None
    ) -> QuantizedWeight:
        """Codes of ``weight`` with its own factors, or with those given."""
        _check_weight(weight)
        if self.blocks is not None:
            parts = [self._encoded(_as_rows(weight[rows])) for rows in row_chunks(weight)]
            codes = torch.cat([part.codes for part in parts])
            scales = torch.cat([part.scales for part in parts])
            return QuantizedWeight(codes.reshape(weight.shape), Factors(scales))
        factors = factors or self.factors(weight)
        element = self._element()
        codes = torch.empty(weight.shape, dtype=element.storage, device=weight.device)
        for rows in row_chunks(weight):
            part = weight[rows]
            levels = on_grid(self._grouped(_as_rows(part)), _of_rows(factors, rows), element)
            # Levels lie on the grid already: encoding only changes their type.
            codes[rows] = self._ungrouped(element.encode(levels), part)
        return QuantizedWeight(codes, factors)

    def dequantize(self, quantized: QuantizedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values of codes, in ``dtype``."""
        codes, factors = quantized.codes, quantized.factors
        result = torch.empty(codes.shape, dtype=dtype, device=codes.device)
        for rows in row_chunks(codes):
            part, own = codes[rows], _of_rows(factors, rows)
            flat = part.reshape(len(part), -1)
            if self.blocks is not None:
                values = self.blocks.decode(Blocks(flat, own.scale), dtype).reshape(part.shape)
            else:
                levels = self._grouped(self._element().decode(flat))
                values = self._ungrouped(from_grid(levels, own), part)
            result[rows] = values
        return result

    def fake_quantize(
        self,
        weight: Tensor | ColumnScaled,
        factors: Factors | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """``weight`` moved to the format's values, in its shape and in ``dtype`` (None: its own).

        ``factors``: instead of the weight's own. A block format takes its own always.
        """
        _check_weight(weight)
        if self.blocks is None:
            factors = factors or self.factors(weight)
        result = torch.empty(weight.shape, dtype=dtype or weight.dtype, device=weight.device)
        for rows in row_chunks(weight):
            result[rows] = self._rounded(weight[rows], factors and _of_rows(factors, rows))
        return result

    def _rounded(self, weight: Tensor, factors: Factors | None) -> Tensor:
        rows = _as_rows(weight)
        if self.blocks is not None:
            return self.blocks.round(rows.to(weight.dtype)).reshape(weight.shape)
        assert factors is not None
        values = from_grid(on_grid(self._grouped(rows), factors, self._element()), factors)
        return self._ungrouped(values, weight).to(weight.dtype)

    def _encoded(self, rows: Tensor) -> Blocks:
        assert self.blocks is not None
        if not bool(torch.isfinite(rows).all()):
            raise _not_finite()
        return self.blocks.encode(rows)

    def _extremes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest of each channel or group; of all rows ([1, 1]) for "tensor"."""
        if self.strategy == "tensor":
            low, high = rows.aminmax()
            return low.reshape(1, 1), high.reshape(1, 1)
        low, high = self._grouped(rows).aminmax(dim=-1, keepdim=True)
        return low, high

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


def row_chunks(weight: Tensor | ColumnScaled) -> Iterator[slice]:
    """Slices of the first axis that hold a quarter of a million elements each, or one row."""
    rows = max(1, _CHUNK * len(weight) // weight.numel())
    for start in range(0, len(weight), rows):
        yield slice(start, start + rows)


def _of_rows(factors: Factors, rows: slice) -> Factors:
    """Factors of some rows; one scale for all is that of any."""
    if len(factors.scale) == 1:
        return factors
    offset = factors.offset
    return Factors(factors.scale[rows], None if offset is None else offset[rows])


def _as_rows(weight: Tensor) -> Tensor:
    """float32 [N, K], detached."""
    return exact_float32(weight).reshape(weight.shape[0], -1)


def _check_weight(weight: Tensor | ColumnScaled) -> None:
    if weight.dim() < 2 or weight.numel() == 0:
        raise WrongValue(f"a weight has two axes or more and elements, not {list(weight.shape)}")


def _not_finite() -> WrongState:
    return WrongState("a weight holds inf or NaN", hint="Check the model's checkpoint.")
