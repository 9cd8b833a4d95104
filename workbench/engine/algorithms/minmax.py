"""Min-max: the grid that clips nothing. Not in the format; the baseline others are compared to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workbench.engine.algorithms.activation_scale import ActivationScale
from workbench.engine.algorithms.batch import Extremes
from workbench.engine.algorithms.hfmg import range_scale
from workbench.engine.errors import WrongState
from workbench.engine.numerics.integer import as_float32


class MinMaxObserver:
    """Keeps the extremes of what it sees; the signature of ``observer.Observer``."""

    def __init__(self, bits: int, asymmetric: bool) -> None:
        self.bits = bits
        self.asymmetric = asymmetric
        self.low, self.high = math.inf, -math.inf

    def update(self, x: Tensor, known: Extremes | None = None) -> None:
        """One batch. ``TypeError`` for integers, ``RuntimeError`` for inf and NaN."""
        values = as_float32(x)
        if values.numel() == 0:
            return
        low, high = (float(end) for end in known or torch.aminmax(values))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise WrongState("an activation holds inf or NaN", hint="Check the calibration data.")
        self.low, self.high = min(self.low, low), max(self.high, high)

    def result(self) -> ActivationScale:
        """Scale and offset of the whole range; ``RuntimeError`` when nothing was seen."""
        if self.low > self.high:
            raise WrongState("no batch was seen", hint="Run at least one batch through the model.")
        return range_scale(self.low, self.high, self.bits, self.asymmetric)
