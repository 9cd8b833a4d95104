"""What calibration asks of an activation algorithm, and which algorithm a configuration means."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from workbench.engine.algorithms.activation_scale import ActivationScale
from workbench.engine.algorithms.batch import Extremes
from workbench.engine.algorithms.hfmg import HFMGObserver
from workbench.engine.algorithms.ifmr import IFMRObserver
from workbench.engine.files.config import ActivationParams


class Observer(Protocol):
    """Watches one tensor over the batches, then finds its scale."""

    def update(self, x: Tensor, known: Extremes | None = None) -> None:
        """One batch, with its extremes where somebody has found them.

        ``TypeError`` for integers, ``RuntimeError`` for inf and NaN.
        """

    def result(self) -> ActivationScale:
        """The scale found from what was seen."""


def make_observer(
    params: ActivationParams,
    asymmetric: bool,
    *,
    byte_budget: int,
    sample_limit: int | None = None,
    compat: bool = False,
) -> IFMRObserver | HFMGObserver:
    """``asymmetric``: with the global default already applied (``QuantConfig.asymmetric``)."""
    if params.act_algo == "hfmg":
        return HFMGObserver(
            params.num_bits,
            asymmetric,
            params.num_of_bins,
            sample_limit=sample_limit,
            compat=compat,
        )
    return IFMRObserver(
        params.num_bits,
        asymmetric,
        params.max_percentile,
        params.min_percentile,
        params.search_range,
        params.search_step,
        byte_budget=byte_budget,
        sample_limit=sample_limit,
        compat=compat,
    )
