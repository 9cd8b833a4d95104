"""Rounding to the nearest of a few values by looking up the leading bits of a float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from workbench.engine.numerics.element import exact_float32

_MANTISSA = 23


class _Table:
    """A small constant tensor, with copies for the devices and dtypes that asked for one."""

    def __init__(self, entries: Tensor) -> None:
        self._entries = entries
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def look_up(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        key = (index.device, dtype)
        entries = self._copies.get(key)
        if entries is None:
            entries = self._entries.to(device=index.device, dtype=dtype)
            # While a graph is traced this may be a stand-in, which must not stay.
            if type(entries) is Tensor:
                self._copies[key] = entries
        return entries.index_select(0, index.reshape(-1)).view(index.shape)


class NearestTable:
    """Nearest code, or nearest value, of every float32: five integer operations and a look-up.

    A float32 is cut to its sign, exponent and ``kept`` mantissa bits, the last of which is set
    when anything was cut off ("rounding to odd"). What remains still tells on which side of a
    midpoint, or whether exactly on it, the number was, as long as midpoints need fewer than
    ``kept`` mantissa bits; so a table of 2^(9 + kept) entries rounds exactly.

    ``magnitudes`` ascend from 0; ``positive`` and ``negative`` are their codes. Ties go to the
    larger magnitude ("away") or to the even index ("even"). Larger numbers saturate.
    """

    def __init__(
        self,
        magnitudes: Sequence[float],
        positive: Sequence[int],
        negative: Sequence[int],
        *,
        kept: int,
        ties: Literal["away", "even"],
        nan_code: int,
        infinity: tuple[int, int] | None = None,
    ) -> None:
        self._shift = _MANTISSA - kept
        self._last = (1 << (9 + kept)) - 1
        half = np.arange(1 << (8 + kept), dtype=np.uint32)
        with np.errstate(invalid="ignore"):  # some of the NaNs are signalling ones
            numbers = (half << np.uint32(self._shift)).view(np.float32).astype(np.float64)
        levels = np.asarray(magnitudes, dtype=np.float64)
        midpoints = (levels[1:] + levels[:-1]) / 2
        index = np.searchsorted(midpoints, numbers, side="right")
        if ties == "even":
            on_midpoint = (index > 0) & (midpoints[np.maximum(index, 1) - 1] == numbers)
            index -= on_midpoint & (index % 2 == 1)
        codes = np.concatenate([np.asarray(positive)[index], np.asarray(negative)[index]])
        # A code that serves both signs has no sign: the value is no -0.0 then.
        mirrored = np.where(np.asarray(negative) == np.asarray(positive), levels, -levels)
        values = np.concatenate([levels[index], mirrored[index]])
        numbers = np.concatenate([numbers, -numbers])
        if infinity is not None:
            codes[np.isposinf(numbers)], codes[np.isneginf(numbers)] = infinity
            values[np.isinf(numbers)] = numbers[np.isinf(numbers)]
        codes[np.isnan(numbers)] = nan_code
        values[np.isnan(numbers)] = np.nan
        self._codes = _Table(torch.from_numpy(codes.astype(np.uint8)))
        self._values = _Table(torch.from_numpy(values.astype(np.float32)))

    def codes(self, x: Tensor) -> Tensor:
        """uint8 codes of ``x``."""
        return self._codes.look_up(self._index(x), torch.uint8)

    def nearest(self, x: Tensor) -> Tensor:
        """The nearest values, in the dtype of ``x``; they must be exact in it."""
        return self._values.look_up(self._index(x), x.dtype)

    def _index(self, x: Tensor) -> Tensor:
        bits = exact_float32(x).view(torch.int32)
        mask = (1 << self._shift) - 1
        # The carry of the sum is set when one of the bits to be cut is.
        index = (bits & mask).add_(mask).bitwise_or_(bits)
        return index.bitwise_right_shift_(self._shift).bitwise_and_(self._last)


class ValueTable:
    """Values of the codes 0…255 on any device, in any floating dtype."""

    def __init__(self, values: Sequence[float]) -> None:
        self._table = _Table(torch.tensor(values, dtype=torch.float64).to(torch.float32))

    def __call__(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._table.look_up(codes.int(), dtype)
