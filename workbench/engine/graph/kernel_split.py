"""The two small kernels that take the place of a convolution's kernel, by shape alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

Mode = Literal["FCFK", "FCSK", "SCFK", "SCSK"]
MODES: tuple[Mode, ...] = ("FCFK", "FCSK", "SCFK", "SCSK")

_OUT, _IN, _HEIGHT, _WIDTH = range(4)
_ROWS: dict[Mode, tuple[int, int]] = {
    "FCFK": (_OUT, _HEIGHT),
    "FCSK": (_OUT, _WIDTH),
    "SCFK": (_IN, _HEIGHT),
    "SCSK": (_IN, _WIDTH),
}


@dataclass(frozen=True)
class KernelSplit:
    """How a kernel ``(Cout, Cin, KH, KW)`` unfolds into a matrix and what its factors become.

    Rows combine the smaller channel side with the smaller kernel side, so there are at most as
    many rows (L) as columns (M). Source: specification chapter 60 section 3.
    """

    shape: tuple[int, int, int, int]

    @property
    def mode(self) -> Mode:
        outputs, inputs, height, width = self.shape
        wide = height > width
        if outputs < inputs:
            return "FCSK" if wide else "FCFK"
        return "SCSK" if wide else "SCFK"

    @property
    def row_axes(self) -> tuple[int, int]:
        return _ROWS[self.mode]

    @property
    def column_axes(self) -> tuple[int, int]:
        channel, kernel = self.row_axes
        return (_OUT + _IN - channel, _HEIGHT + _WIDTH - kernel)

    @property
    def rows(self) -> int:
        return prod(self.shape[axis] for axis in self.row_axes)

    @property
    def columns(self) -> int:
        return prod(self.shape[axis] for axis in self.column_axes)

    @property
    def channels(self) -> int:
        """The smaller of the two channel counts."""
        return min(self.shape[:2])

    @property
    def rows_come_first(self) -> bool:
        """Whether the factor with the rows is the first of the two layers: it reads the inputs."""
        return self.row_axes[0] == _IN

    @property
    def first_is_vertical(self) -> bool:
        first = self.row_axes if self.rows_come_first else self.column_axes
        return first[1] == _HEIGHT

    def first_shape(self, rank: int) -> tuple[int, int, int, int]:
        _, inputs, height, width = self.shape
        return (rank, inputs, height, 1) if self.first_is_vertical else (rank, inputs, 1, width)

    def last_shape(self, rank: int) -> tuple[int, int, int, int]:
        outputs, _, height, width = self.shape
        return (outputs, rank, 1, width) if self.first_is_vertical else (outputs, rank, height, 1)

    def multiply_accumulates(self, rank: int, stride: tuple[int, int]) -> int:
        """Multiply-accumulates of the pair at one position of the output (away from the borders).

        The first layer strides along its own axis only, so along the other it works at ``stride``
        positions for each one of the output.
        """
        repeated = stride[1] if self.first_is_vertical else stride[0]
        return repeated * prod(self.first_shape(rank)) + prod(self.last_shape(rank))
