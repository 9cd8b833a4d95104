"""One convolution's kernel as the product of a vertical and a horizontal one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from workbench.engine.algorithms.left_factors import (
    Array,
    GramFactors,
    LeftFactors,
    RandomisedFactors,
    SvdFactors,
    ZeroFactors,
    scaled_blocks,
)
from workbench.engine.graph.kernel_split import KernelSplit

logger = logging.getLogger("workbench.engine.algorithms")

Method = Literal["gram", "svd", "randomised"]
METHODS: tuple[Method, ...] = ("gram", "svd", "randomised")

_SMALL = 512
_TOLERANCE = 1e-9

Spectrum = Callable[[], Array]
"""The singular values of the unfolded kernel, computed when first asked for."""


@dataclass(frozen=True)
class RankChoice:
    """``estimated``: singular values that stand out of the noise; None when nobody asked."""

    rank: int
    estimated: int | None = None


ChooseRank = Callable[[Spectrum], RankChoice]


@dataclass(frozen=True)
class Decomposition:
    """What a kernel becomes. ``first`` and ``last`` are None when only the error was wanted.

    ``relative_error`` is the norm of what is lost divided by the norm of the kernel.
    """

    choice: RankChoice
    relative_error: float
    first: Tensor | None = None
    last: Tensor | None = None


def unfold(weight: Tensor, split: KernelSplit) -> Tensor:
    """``weight`` (Cout, Cin, KH, KW) as the L×M matrix of ``split``, channel index major."""
    return weight.permute(*split.row_axes, *split.column_axes).reshape(split.rows, split.columns)


def decompose_weight(
    weight: Tensor,
    choose_rank: ChooseRank,
    *,
    method: Method = "gram",
    balance: bool = False,
    max_error: float | None = None,
    only_error: bool = False,
    seed: int = 0,
) -> Decomposition:
    """The best pair of kernels of the rank that ``choose_rank`` gives, in the weight's own type.

    ``weight``: finite, (Cout, Cin, KH, KW), on the CPU. ``balance`` shares the singular values
    between the two kernels; otherwise one is orthonormal. The entry of largest magnitude of each
    left singular vector is positive, so the methods agree in sign. A pair is not computed when
    ``only_error`` is set or the error is above ``max_error``. ``method`` ``randomised`` must come
    with a ``choose_rank`` that asks for no spectrum.

    Source: specification chapter 60 sections 3 and 8.
    """
    if method == "gram":
        try:
            return _decompose(weight, choose_rank, method, balance, max_error, only_error, seed)
        except np.linalg.LinAlgError as error:
            logger.warning("the Gram method failed (%s): a singular value decomposition", error)
            method = "svd"
    return _decompose(weight, choose_rank, method, balance, max_error, only_error, seed)


def _decompose(
    weight: Tensor,
    choose_rank: ChooseRank,
    method: Method,
    balance: bool,
    max_error: float | None,
    only_error: bool,
    seed: int,
) -> Decomposition:
    outputs, inputs, height, width = weight.shape
    split = KernelSplit((outputs, inputs, height, width))
    matrix = unfold(weight.detach(), split)
    scale = float(matrix.abs().max())
    factors = _factors(matrix, scale, method, seed)
    known: list[Array] = []

    def spectrum() -> Array:
        if not known:
            known.append(factors.singular_values())
        return known[0]

    choice = choose_rank(spectrum)
    if method != "randomised" and (only_error or max_error is not None):
        error = _tail_error(spectrum(), choice.rank)
        if only_error or (max_error is not None and error > max_error):
            return Decomposition(choice, error)
    left, values = _signed(*factors.leading(choice.rank))
    sharing = np.sqrt(np.where(values > 0, values, 1.0)) if balance else np.ones(choice.rank)
    right, energy, kept = _project(matrix, scale, left, sharing)
    if method == "gram" and not _is_sound(left, values / (scale or 1.0), energy, kept):
        raise np.linalg.LinAlgError("it missed its accuracy")
    error = float(np.sqrt(max(energy - kept, 0.0) / energy)) if energy else 0.0
    if only_error or (max_error is not None and error > max_error):
        return Decomposition(choice, error)
    pair = _as_kernels(_cast(torch.from_numpy(left * sharing), weight.dtype), right, split)
    return Decomposition(choice, error, *pair)


def _factors(matrix: Tensor, scale: float, method: Method, seed: int) -> LeftFactors:
    if scale == 0.0:
        return ZeroFactors(matrix.shape[0])
    if method == "randomised":
        return RandomisedFactors(matrix, scale, torch.Generator().manual_seed(seed))
    if method == "svd" or matrix.shape[0] <= _SMALL:
        return SvdFactors(matrix, scale)
    return GramFactors(matrix, scale)


def _signed(left: Array, values: Array) -> tuple[Array, Array]:
    largest = left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])]
    return left * np.where(largest < 0, -1.0, 1.0), values


def _project(
    matrix: Tensor, scale: float, left: Array, sharing: Array
) -> tuple[Tensor, float, float]:
    """``leftᵀ·matrix`` by rows divided by ``sharing``, in the matrix's type; and two norms.

    The squared norms of the matrix and of the product, both of ``matrix / scale``.
    """
    rank, columns = left.shape[1], matrix.shape[1]
    right = torch.empty(rank, columns, dtype=matrix.dtype)
    energy = kept = 0.0
    start = 0
    for block in scaled_blocks(matrix, scale or 1.0):
        part = left.T @ block
        energy += float(np.vdot(block, block))
        kept += float(np.vdot(part, part))
        part *= (scale / sharing)[:, None]
        stop = start + part.shape[1]
        right[:, start:stop] = _cast(torch.from_numpy(part), matrix.dtype)
        start = stop
    return right, energy, kept


def _is_sound(left: Array, values: Array, energy: float, kept: float) -> bool:
    """Orthonormal columns that hold the energy their eigenvalues say (section 8.1 step 9)."""
    orthogonal = np.abs(left.T @ left - np.eye(left.shape[1])).max() <= _TOLERANCE
    return bool(orthogonal and abs(kept - np.square(values).sum()) <= _TOLERANCE * energy)


def _tail_error(singular_values: Array, rank: int) -> float:
    largest = singular_values[0] or 1.0
    power = np.square(singular_values / largest)
    total = power.sum()
    return float(np.sqrt(power[rank:].sum() / total)) if total else 0.0


def _as_kernels(left: Tensor, right: Tensor, split: KernelSplit) -> tuple[Tensor, Tensor]:
    """First and last kernel from the factors (L×r) and (r×M)."""
    rank = right.shape[0]
    outputs, inputs = split.shape[:2]
    first, last = (left.T, right) if split.rows_come_first else (right, left.T)
    return (
        first.reshape(rank, inputs, -1).reshape(split.first_shape(rank)).contiguous(),
        last.reshape(rank, outputs, -1)
        .transpose(0, 1)
        .reshape(split.last_shape(rank))
        .contiguous(),
    )


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    limits = torch.finfo(dtype)
    return values.clamp(limits.min, limits.max).to(dtype)
