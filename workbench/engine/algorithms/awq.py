"""AWQ: weight columns that meet large activations are scaled up before they are rounded.

The scale of a column is a power of the mean magnitude of its input channel; the power is searched.
Source: specification chapter 25 section 7.3; Lin et al., arXiv:2306.00978.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.engine.algorithms.scale_rule import Factors
from workbench.engine.algorithms.weight_formats import WeightFormat, row_chunks
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
    weight_format: WeightFormat,
    *,
    grids_num: int = 20,
    cancel: CancelToken | None = None,
) -> ColumnScales:
    """The first of ``grids_num`` exponents t/grids_num with the smallest output error.

    ``weight`` ``(N, K)``, not changed; ``magnitude`` ``(K,)``: mean |x| of each input channel;
    ``sample`` ``(T, K)``: tokens on which the error ``mean((X (W - W_t)ᵀ)⁴)`` is measured. On T
    tokens this costs T/K of the Gram form of a squared error, and keeps the fourth power.
    Trials round some rows of the weight at a time: its copies in float32 are never whole.

    Errors: ``RuntimeError`` when weight or sample are not finite, and when no error is.
    """
    rows = as_float32(sample)
    finite = [torch.isfinite(as_float32(weight[part])).all() for part in row_chunks(weight)]
    if not (all(map(bool, finite)) and bool(torch.isfinite(rows).all())):
        raise WrongState(
            "the weight or the activation holds inf or NaN",
            hint="Check the model's weights and data.",
        )
    best: tuple[float, Tensor] | None = None
    ratio, losses = 0.0, []
    errors = rows.new_empty(len(rows), len(weight))
    for step in range(grids_num):
        check(cancel)
        scales = column_scales(magnitude, step / grids_num)
        factors = _shared_factors(weight, scales, weight_format)
        for part in row_chunks(weight):
            values = as_float32(weight[part])
            rounded = weight_format.fake_quantize(values * scales, factors)
            errors[:, part] = rows @ rounded.div_(scales).sub_(values).t()
        loss = float(errors.square_().square_().mean())
        losses.append(loss)
        if loss == loss and loss < (best[0] if best else float("inf")):
            best, ratio = (loss, scales), step / grids_num
    if best is None:
        raise WrongState(
            "no scale of the columns gives a finite error", hint="Leave this layer in float."
        )
    return ColumnScales(best[1], ratio, tuple(losses))


def _shared_factors(weight: Tensor, scales: Tensor, weight_format: WeightFormat) -> Factors | None:
    """Factors of ``W·c`` that all rows share; None where each row has its own."""
    if weight_format.strategy != "tensor":
        return None
    # Of the whole only the extremes count.
    extremes = [torch.stack((weight[part] * scales).aminmax()) for part in row_chunks(weight)]
    return weight_format.factors(torch.stack(extremes))


def column_scales(magnitude: Tensor, ratio: float) -> Tensor:
    """``m^ratio``, centred so that the largest and the smallest multiply to 1; float32 ``(K,)``."""
    powers = (magnitude.float() ** ratio).clamp_min(_SMALLEST).double()
    centred = powers / (powers.max() * powers.min()).sqrt()
    return centred.clamp_(_SMALLEST, torch.finfo(torch.float32).max).float()
