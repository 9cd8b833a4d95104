"""The largest values of a stream, exactly, without sorting it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workbench.engine.algorithms.side_by_side import sections, side_by_side

Array = npt.NDArray[np.floating[Any]]

ROW = 1024
"""Values per row of the two-level search."""

# So many rows are still in the cache when they are read for the second time.
_AT_ONCE = 512
# Fewer values than this are done before another thread has woken up.
_SHARE = 1 << 19


def row_extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each run of ``ROW`` values, the last run maybe shorter."""
    found = side_by_side(_row_extremes, sections(values, _SHARE, ROW))
    return _joined([low for low, _ in found]), _joined([high for _, high in found])


def _row_extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    whole = values.numel() // ROW * ROW
    low, high = [], []
    if whole:
        for rows in values[:whole].view(-1, ROW).chunk(-(-whole // (ROW * _AT_ONCE))):
            low.append(rows.amin(1))
            high.append(rows.amax(1))
    if whole < values.numel():
        tail = values[whole:]
        low.append(tail.amin().reshape(1))
        high.append(tail.amax().reshape(1))
    return _joined(low), _joined(high)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class TopValues:
    """Keeps the ``keep`` largest of each block; ``sign`` -1 keeps the smallest.

    At least ``keep`` values are as large as the ``keep``-th largest row maximum, so the ``keep``
    largest values lie in the ``keep`` rows of largest maximum: only those are looked at.
    """

    def __init__(self, sign: int = 1) -> None:
        self._sign = sign
        # Times ``sign``, so that the largest are looked for.
        self._values: list[Array] = []
        # No value that was left out lies beyond this one.
        self._edge = -np.inf

    def add(self, values: Tensor, row_maxima: Tensor, keep: int) -> None:
        """Take in a flat block; ``row_maxima`` are its row extremes (minima for ``sign`` -1)."""
        kept = self._signed(row_maxima)
        if len(kept) <= keep:
            kept = self._signed(values)
        else:
            rows = np.argpartition(kept, -keep)[-keep:]
            kept = kept[rows]
            least = kept.min()
            # Where as many rows reach the same value (0 or 6 behind a ReLU6), none holds a larger.
            if least < kept.max():
                kept = self._signed(_rows(values, rows))
                kept = kept[kept >= least]
        if len(kept) > keep:
            kept = np.partition(kept, -keep)[-keep:]
        if len(kept) < values.numel():
            self._edge = max(self._edge, float(kept.min()))
        self._values.append(kept)

    def kth(self, k: int) -> float | None:
        """The ``k``-th largest value (smallest for ``sign`` -1), or None when it was not kept."""
        found = np.concatenate(self._values) if self._values else np.empty(0, np.float32)
        self._values = [found]
        if k > len(found):
            return None
        value = float(np.partition(found, -k)[-k])
        return value * self._sign if value >= self._edge else None

    def _signed(self, values: Tensor) -> Array:
        if values.dtype == torch.bfloat16:
            values = values.float()
        found: Array = values.cpu().numpy()
        return found if self._sign > 0 else -found


def _rows(values: Tensor, rows: npt.NDArray[np.intp]) -> Tensor:
    """The values of so numbered rows, of which the last may be shorter."""
    whole = values.numel() // ROW
    chosen = torch.from_numpy(rows[rows < whole]).to(values.device)
    kept = values[: whole * ROW].view(-1, ROW).index_select(0, chosen).reshape(-1)
    return torch.cat([kept, values[whole * ROW :]]) if len(chosen) < len(rows) else kept
