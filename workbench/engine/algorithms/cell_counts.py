"""How many values of a tensor fall into each of many equal cells."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.engine.algorithms.side_by_side import sections, side_by_side

_CHUNK = 1 << 18
# Fewer values than this are counted before another thread has woken up.
_SHARE = 1 << 17


def count_cells(values: Tensor, shift: float, inverse: float, cells: int, *, clamp: bool) -> Tensor:
    """Counts, int64, of ``trunc(values * inverse + shift)`` for 0 to ``cells - 1``.

    ``values`` is flat, of any floating dtype. ``clamp``: what lies outside goes to the first or the
    last cell; without it nothing may lie outside. About 1.3 ns a value on one core.
    """
    origin = torch.tensor(shift, device=values.device)

    def count(section: Tensor) -> Tensor:
        size = min(_CHUNK, section.numel())
        place = torch.empty(size, device=section.device)
        dtype = torch.int16 if cells <= 1 << 15 else torch.int32
        index = torch.empty(size, dtype=dtype, device=section.device)
        counts = torch.zeros(cells, dtype=torch.int64, device=section.device)
        for start in range(0, section.numel(), size):
            chunk = section[start : start + size].to(torch.float32)
            part = place[: chunk.numel()]
            torch.add(origin, chunk, alpha=inverse, out=part)
            if clamp:
                part.clamp_(0, cells - 1)
            counts += torch.bincount(index[: chunk.numel()].copy_(part), minlength=cells)
        return counts

    counts, *others = side_by_side(count, sections(values, _SHARE))
    for other in others:
        counts += other
    return counts
