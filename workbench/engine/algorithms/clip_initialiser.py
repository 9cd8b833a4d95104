"""The clip bounds that training starts from: the symmetric search of IFMR over the first batches.

Source: specification chapter 30 section 5.2 and A9 of its "Do better".
"""

from __future__ import annotations

from torch import Tensor

from workbench.engine.algorithms.ifmr import IFMRObserver
from workbench.engine.numerics.integer import int_range

BYTE_BUDGET = 1 << 18
"""Values of one layer that are kept as they are; more are counted in bins."""


class ClipInitialiser:
    """Watches ``batch_num`` batches of one tensor, then finds its bounds.

    Memory is bounded and the search takes a few milliseconds: ``ifmr.IFMRObserver``, whose result
    is exact while the data is small.
    """

    def __init__(self, bits: int, batch_num: int, *, byte_budget: int = BYTE_BUDGET) -> None:
        self.batch_num = batch_num
        self.seen = 0
        self._levels = int_range(bits)
        self._observer = IFMRObserver(bits, asymmetric=False, byte_budget=byte_budget)

    @property
    def done(self) -> bool:
        """Enough batches were seen."""
        return self.seen >= self.batch_num

    def update(self, x: Tensor) -> None:
        """Take in one batch, any shape; ``TypeError`` for integers, ``RuntimeError`` for inf."""
        self._observer.update(x)
        self.seen += 1

    def result(self) -> tuple[float, float]:
        """``(clip_max, clip_min)``: the ends of the best grid; ``RuntimeError`` without a batch."""
        scale = self._observer.result().scale
        return self._levels[1] * scale, self._levels[0] * scale
