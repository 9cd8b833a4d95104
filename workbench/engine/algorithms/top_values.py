"""The largest values of a stream, exactly, without sorting it."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.engine.algorithms.side_by_side import sections, side_by_side

ROW = 1024
"""Values per row of the two-level search."""

# So many rows are still in the cache when they are read for the second time.
_AT_ONCE = 512
# Fewer values than this are done before another thread has woken up.
_SHARE = 1 << 19


def row_extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each run of ``ROW`` values, the last run maybe shorter."""
    found = side_by_side(_row_extremes, sections(values, _SHARE, ROW))
    if len(found) == 1:
        return found[0]
    return torch.cat([low for low, _ in found]), torch.cat([high for _, high in found])


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
    return torch.cat(low), torch.cat(high)


class TopValues:
    """Keeps the ``keep`` largest of each block; ``sign`` -1 keeps the smallest.

    At least ``keep`` values are as large as the ``keep``-th largest row maximum, so the ``keep``
    largest values lie in the ``keep`` rows of largest maximum: only those are looked at.
    """

    def __init__(self, sign: int = 1) -> None:
        self._largest = sign > 0
        self._values = torch.empty(0)
        # No value that was left out lies beyond this one.
        self._edge = -torch.inf * sign

    def add(self, values: Tensor, row_maxima: Tensor, keep: int) -> None:
        """Take in a flat block; ``row_maxima`` are its row extremes (minima for ``sign`` -1)."""
        kept = values
        if row_maxima.numel() > keep:
            extremes, rows = row_maxima.topk(keep, largest=self._largest, sorted=False)
            found = extremes.tolist()
            if min(found) == max(found):
                # As many rows reach the same value (0 or 6 behind a ReLU6): none holds a larger.
                kept = extremes
            else:
                tail = row_maxima.numel() - 1 if values.numel() % ROW else -1
                whole = values[: values.numel() // ROW * ROW].view(-1, ROW)
                kept = whole.index_select(0, rows[rows != tail]).reshape(-1)
                if tail >= 0 and bool((rows == tail).any()):
                    kept = torch.cat([kept, values[tail * ROW :]])
        if kept.numel() > keep:
            kept = kept.topk(keep, largest=self._largest).values
        if kept.numel() < values.numel():
            last = float(kept.amin() if self._largest else kept.amax())
            self._edge = max(self._edge, last) if self._largest else min(self._edge, last)
        self._values = torch.cat([self._values, kept.cpu()])

    def kth(self, k: int) -> float | None:
        """The ``k``-th largest value (smallest for ``sign`` -1), or None when it was not kept."""
        if k > self._values.numel():
            return None
        value = float(self._values.topk(k, largest=self._largest).values[-1])
        beyond = value >= self._edge if self._largest else value <= self._edge
        return value if beyond else None
