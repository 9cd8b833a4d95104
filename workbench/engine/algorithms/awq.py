"""AWQ: weight columns that meet large activations are scaled up before they are rounded.

The scale of a column is a power of the mean magnitude of its input channel; the power is searched.
Source: specification chapter 25 section 7.3; Lin et al., arXiv:2306.00978.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.engine.errors import WrongState
from workbench.engine.events import CancelToken, check
from workbench.engine.numerics.integer import as_float32

_SMALLEST = 1e-4


@dataclass(frozen=True)
class ColumnScales:
    """``scales`` ``(K,)`` float32: round ``W·c``, divide the input by c.

    ``ratio``: the exponent that won; ``losses``: of all exponents, NaN where one was not finite.
    """

    scales: Tensor
    ratio: float
    losses: tuple[float, ...]


def search_column_scales(
    weight: Tensor,
    magnitude: Tensor,
    sample: Tensor,
    round_weight: Callable[[Tensor], Tensor],
    *,
    grids_num: int = 20,
    cancel: CancelToken | None = None,
) -> ColumnScales:
    """The first of ``grids_num`` exponents t/grids_num with the smallest output error.

    ``weight`` ``(N, K)``, not changed; ``magnitude`` ``(K,)``: mean |x| of each input channel;
    ``sample`` ``(T, K)``: tokens on which the error ``mean((X (W - W_t)ᵀ)⁴)`` is measured. On T
    tokens this costs T/K of the Gram form of a squared error, and keeps the fourth power.
    ``round_weight``: a float32 ``(N, K)`` weight moved to its grid and back.

    Errors: ``RuntimeError`` when weight or sample are not finite, and when no error is.
    """
    values = as_float32(weight)
    rows = as_float32(sample)
    if not (bool(torch.isfinite(values).all()) and bool(torch.isfinite(rows).all())):
        raise WrongState(
            "the weight or the activation holds inf or NaN",
            hint="Check the model's weights and data.",
        )
    best: tuple[float, Tensor] | None = None
    ratio, losses = 0.0, []
    for step in range(grids_num):
        check(cancel)
        scales = column_scales(magnitude, step / grids_num)
        error = round_weight(values * scales).div_(scales).sub_(values)
        loss = float(torch.matmul(rows, error.t()).square_().square_().mean())
        losses.append(loss)
        if loss == loss and loss < (best[0] if best else float("inf")):
            best, ratio = (loss, scales), step / grids_num
    if best is None:
        raise WrongState(
            "no scale of the columns gives a finite error", hint="Leave this layer in float."
        )
    return ColumnScales(best[1], ratio, tuple(losses))


def column_scales(magnitude: Tensor, ratio: float) -> Tensor:
    """``m^ratio``, centred so that the largest and the smallest multiply to 1; float32 ``(K,)``."""
    powers = (magnitude.float() ** ratio).clamp_min(_SMALLEST).double()
    centred = powers / (powers.max() * powers.min()).sqrt()
    return centred.clamp_(_SMALLEST, torch.finfo(torch.float32).max).float()
