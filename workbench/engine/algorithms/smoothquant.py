"""SmoothQuant: outliers of the activations move into the weights before both are quantised.

Activation channel j is divided by f_j and column j of the weight multiplied by it, which changes
nothing in float. Source: specification chapter 25 section 7.2; Xiao et al., arXiv:2211.10438.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.engine.algorithms.weight_formats import row_chunks
from workbench.engine.errors import WrongState
from workbench.engine.numerics.integer import FLT_EPSILON, as_float32


def smoothing_factors(activation: Tensor, weight: Tensor, strength: float) -> Tensor:
    """``f_j = a_j^α / w_j^(1 - α)``, float32 ``(K,)``; 1 where it is not finite or below 1.2e-7.

    ``activation``: largest magnitudes a_j of the channels, ``(K,)``. ``weight``: ``(N, K)``.
    ``strength`` α in (0, 1): the larger, the more of the range goes into the weight. Always in
    float32: in bfloat16 every factor below 0.0078 would be lost. ``RuntimeError`` for a weight or
    magnitudes that are not finite.
    """
    parts = [as_float32(weight[rows]).abs().amax(0) for rows in row_chunks(weight)]
    magnitudes = torch.stack(parts).amax(0)
    if not bool((torch.isfinite(magnitudes) & torch.isfinite(activation)).all()):
        raise WrongState(
            "the weight or the activation holds inf or NaN",
            hint="Check the model's weights and data.",
        )
    factors = activation.float() ** strength / magnitudes ** (1.0 - strength)
    regular = torch.isfinite(factors) & (factors >= FLT_EPSILON)
    return torch.where(regular, factors, torch.ones_like(factors))


def smoothed_range(low: Tensor, high: Tensor, factors: Tensor) -> tuple[float, float]:
    """Smallest and largest value of the activation after the division, over all channels.

    ``low``, ``high``, ``factors``: ``(K,)``.
    """
    return float((low / factors).amin()), float((high / factors).amax())
