"""GPTQ: weights rounded one column after the other, each error made good by the columns to come.

Source: specification chapter 25 section 7.4; Frantar et al., arXiv:2210.17323.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.engine.algorithms.scale_rule import Factors, fake_quantize
from workbench.engine.algorithms.weight_formats import WeightFormat
from workbench.engine.errors import WrongState, WrongValue
from workbench.engine.events import CancelToken, check
from workbench.engine.numerics.element import ElementFormat
from workbench.engine.numerics.integer import as_float32
from workbench.engine.numerics.microscaling import Microscaling

logger = logging.getLogger("workbench.engine.algorithms")

_MOST_DAMPING = 1.0
_SMALL_TRIANGLE = 256


@dataclass(frozen=True)
class GPTQOptions:
    """``damping``: this share of the mean diagonal of H is added to it.

    ``activation_order``: columns with large inputs are rounded first. ``block_size`` columns are
    solved before their errors reach the rest; it changes the time, not the result.
    """

    damping: float = 0.01
    activation_order: bool = True
    block_size: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.damping <= _MOST_DAMPING:
            raise WrongValue(f"damping is {self.damping}; allowed: a number in (0, 1]")
        if self.block_size < 1:
            raise WrongValue(f"block_size is {self.block_size}; allowed: a whole number above 0")


@dataclass(frozen=True)
class GPTQResult:
    """``weight`` ``(N, K)`` float32, every value on the grid of ``factors`` (None: mx blocks).

    ``damping`` is the share that was needed, ``dead_columns`` the number of inputs always zero.
    """

    weight: Tensor
    factors: Factors | None
    damping: float
    dead_columns: int


def solve_gptq(
    weight: Tensor,
    hessian: Tensor,
    number_format: WeightFormat,
    options: GPTQOptions | None = None,
    *,
    overwrite_hessian: bool = False,
    cancel: CancelToken | None = None,
) -> GPTQResult:
    """Round ``weight`` ``(N, K)`` so that ``tr(Δ H Δᵀ)`` is small; ``weight`` is not changed.

    ``hessian`` ``(K, K)``: ``InputGram.hessian``; only the ratios of its entries count, and it is
    not changed unless ``overwrite_hessian`` says that its memory may be used: for wide inputs a
    copy is several times as large as the weight. Columns whose input is always zero become zero.
    The factors are those of the weight before it is solved, in its original order of columns.
    Microscaling blocks are solved in that order too, each with the exponents that its columns ask
    for when their turn comes.

    Errors: ``ValueError`` for shapes that disagree; ``RuntimeError`` when weight or Hessian are not
    finite, or the Hessian is not positive even with damping 1.
    """
    options = options or GPTQOptions()
    values = as_float32(weight).clone()
    features = values.shape[1]
    if hessian.shape != (features, features):
        raise WrongValue(
            f"the Hessian has shape {list(hessian.shape)}; allowed: {[features, features]}"
        )
    diagonal = hessian.diagonal().float()
    if not bool(torch.isfinite(values).all() & torch.isfinite(diagonal).all()):
        raise WrongState(
            "the weight or the Hessian holds inf or NaN",
            hint="Check the model's weights and data.",
        )
    dead = diagonal == 0
    values[:, dead] = 0.0
    blocks, element = number_format.blocks, number_format.elements
    order = None
    if options.activation_order and element is not None:
        order = torch.argsort(diagonal, descending=True, stable=True)
    own = hessian if overwrite_hessian else hessian.clone()
    inverse, damping = _inverse_factor(own, dead, order, options.damping)
    del own
    # Columns as rows: each is then one run of memory.
    columns = (values if order is None else values[:, order]).t().contiguous()
    factors = None
    if element is not None:
        factors = number_format.factors(values)
        grid = _static(element, factors, number_format.group_size or features, order)
        block_size = options.block_size
    elif isinstance(blocks, Microscaling):
        grid = _microscaled(blocks)
        block_size = blocks.block
    else:
        raise WrongValue(
            f"GPTQ cannot round to {number_format.type}; allowed: formats of single numbers, "
            "mxfp4_e2m1, mxfp8_e4m3fn"
        )
    for start in range(0, features, block_size):
        check(cancel)
        stop = min(start + block_size, features)
        block = columns[start:stop]
        errors = _solve_block(block, inverse[start:stop, start:stop], grid(start, block))
        columns[stop:].addmm_(inverse[start:stop, stop:].t(), errors, alpha=-1.0)
    solved = columns.t()
    if order is not None:
        solved = torch.empty_like(values).index_copy_(1, order, solved)
    return GPTQResult(solved.contiguous(), factors, damping, int(dead.sum()))


_RoundColumn = Callable[[int, Tensor], Tensor]


def _solve_block(block: Tensor, inverse: Tensor, round_column: _RoundColumn) -> Tensor:
    """Round the rows of ``block`` ``(B, N)`` in place; their errors, each over its own U_ii."""
    errors = torch.empty_like(block)
    diagonal = inverse.diagonal().tolist()
    for i in range(len(block)):
        # Errors of the columns before are gathered when a column is reached, which reads them
        # once and writes nothing but the column.
        column = torch.addmv(block[i], errors[:i].t(), inverse[:i, i], alpha=-1.0)
        rounded = round_column(i, column)
        torch.sub(column, rounded, out=errors[i]).div_(diagonal[i])
        block[i] = rounded
    return errors


def _static(
    element: ElementFormat, factors: Factors, group_size: int, order: Tensor | None
) -> Callable[[int, Tensor], _RoundColumn]:
    """Rounding with factors fixed before; a column keeps those of its original place."""
    scales = factors.scale.flatten(1).t().contiguous()
    offsets = None if factors.offset is None else factors.offset.flatten(1).t().contiguous()
    of_group = [
        Factors(scale, None if offsets is None else offsets[group])
        for group, scale in enumerate(scales)
    ]

    def at(start: int, block: Tensor) -> _RoundColumn:
        places = range(start, start + len(block))
        index = list(places) if order is None else order[start : start + len(block)].tolist()

        def round_column(i: int, column: Tensor) -> Tensor:
            return fake_quantize(column, of_group[index[i] // group_size], element)

        return round_column

    return at


def _microscaled(element: Microscaling) -> Callable[[int, Tensor], _RoundColumn]:
    """Rounding with the exponents of each block as it is when its first column is reached."""

    def at(_start: int, block: Tensor) -> _RoundColumn:
        scales = element.scales(block, axis=0)

        def round_column(_i: int, column: Tensor) -> Tensor:
            return element.round(column.unsqueeze(0), axis=0, scales=scales).squeeze(0)

        return round_column

    return at


def _inverse_factor(
    hessian: Tensor, dead: Tensor, order: Tensor | None, damping: float
) -> tuple[Tensor, float]:
    """Upper triangular U with ``UᵀU = H⁻¹``, and the damping that made H positive.

    With rows and columns reversed H = L Lᵀ, so U is the reversed inverse of L: one Cholesky and one
    triangular inverse, a third of inverting H and factorising again, and of half its condition.
    U lies where H lay.
    """
    size = len(hessian)
    backwards = torch.arange(size, device=hessian.device) if order is None else order
    backwards = backwards.flip(0)
    torch.index_select(hessian.index_select(0, backwards), 1, backwards, out=hessian)
    source = hessian.float()
    diagonal = torch.where(dead[backwards], torch.ones_like(source[0]), source.diagonal())
    step = float(diagonal.mean())
    while True:
        for dtype in (torch.float32, torch.float64):
            damped = source.to(dtype)
            damped.diagonal().copy_(diagonal.to(dtype) + damping * step)
            lower, info = torch.linalg.cholesky_ex(damped)
            if int(info) == 0 and bool(torch.isfinite(lower.diagonal()).all()):
                # Each is as large as H; only the factor is needed from here on.
                del source, damped
                _invert_lower(lower)
                upper = hessian.t()
                for start in range(0, size, _SMALL_TRIANGLE):
                    stop = min(start + _SMALL_TRIANGLE, size)
                    upper[:, start:stop] = lower[:, size - stop : size - start].flip(0, 1)
                return upper.float(), damping
        if damping >= _MOST_DAMPING:
            raise WrongState(
                "the Hessian of the inputs is not positive even with damping 1",
                hint="Check the calibration data, or leave this layer in float.",
            )
        logger.warning("the Hessian is not positive with damping %g: ten times that", damping)
        damping = min(damping * 10, _MOST_DAMPING)


def _invert_lower(lower: Tensor) -> None:
    """Invert a lower triangle in place by halves: matrix products, which run at full speed."""
    size = len(lower)
    if size <= _SMALL_TRIANGLE:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return
    half = size // 2
    first, last, below = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    _invert_lower(first)
    _invert_lower(last)
    below.copy_((last @ (below @ first)).neg_())
