"""The leading left singular vectors of a wide matrix, and its singular values when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import blas, eigh_tridiagonal, eigvalsh_tridiagonal, lapack
from torch import Tensor

_BLOCK = 512
_FLOOR = 1e-32
_EXTRA_COLUMNS = 16
_MOST_POWER_STEPS = 6
_ENOUGH = 0.005

Array = NDArray[np.float64]


class LeftFactors(Protocol):
    """A matrix A (L×M, L <= M) seen from its left side.

    ``singular_values``: all L, descending, none below 1e-16 of the largest (rounding leaves no
    more). ``leading``: the first ``rank`` left singular vectors, L×rank, and their values.
    """

    def singular_values(self) -> Array: ...

    def leading(self, rank: int) -> tuple[Array, Array]: ...


class GramFactors:
    """From the eigenpairs of the Gram matrix A·Aᵀ (L×L), tridiagonalised once and in place.

    ``matrix`` in any floating type; ``scale`` divides it, so that squares neither overflow nor
    vanish. ``leading`` uses the factorisation up: call it last, and once. Memory: the Gram matrix
    and what its eigenvectors take. Source: specification chapter 60 section 8.1.
    """

    def __init__(self, matrix: Tensor, scale: float) -> None:
        self._scale = scale
        rows = matrix.shape[0]
        gram = np.zeros((rows, rows), order="F")
        for block in scaled_blocks(matrix, scale):
            gram = blas.dsyrk(1.0, block.T, beta=1.0, c=gram, trans=1, lower=1, overwrite_c=1)
        work = int(lapack.dsytrd_lwork(rows, lower=1)[0])
        self._reflectors, self._diagonal, self._beside, self._tau, _ = lapack.dsytrd(
            gram, lower=1, lwork=work, overwrite_a=1
        )

    def singular_values(self) -> Array:
        values = eigvalsh_tridiagonal(self._diagonal, self._beside, lapack_driver="sterf")
        return self._scale * _roots(values[::-1])

    def leading(self, rank: int) -> tuple[Array, Array]:
        rows = len(self._diagonal)
        values, vectors = eigh_tridiagonal(
            self._diagonal,
            self._beside,
            select="i",
            select_range=(rows - rank, rows - 1),
            lapack_driver="stemr",
        )
        vectors = np.asfortranarray(vectors[:, ::-1])
        if rows > 1:
            # The reflectors start one row below the diagonal: the same buffer, one element on.
            below = np.lib.stride_tricks.as_strided(
                self._reflectors.reshape(-1, order="F")[1:],
                shape=(rows, rows - 1),
                strides=self._reflectors.strides,
            )
            lower, _, _ = lapack.dormqr(
                "L",
                "N",
                below,
                self._tau,
                np.asfortranarray(vectors[1:]),
                lwork=64 * rank,
                overwrite_c=1,
            )
            vectors[1:] = lower
        return vectors, self._scale * _roots(values[::-1])


class SvdFactors:
    """From one economy singular value decomposition: small matrices, and the fallback."""

    def __init__(self, matrix: Tensor, scale: float) -> None:
        self._scale = scale
        left, values, _ = torch.linalg.svd(matrix.double() / scale, full_matrices=False)
        self._left, self._values = left.numpy(), values.numpy()

    def singular_values(self) -> Array:
        floored: Array = np.maximum(self._values, self._values[0] * np.sqrt(_FLOOR))
        return self._scale * floored

    def leading(self, rank: int) -> tuple[Array, Array]:
        return self._left[:, :rank], self.singular_values()[:rank]


class ZeroFactors:
    """Of a matrix of zeros: its left singular vectors may be any, so the first unit vectors."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def singular_values(self) -> Array:
        return np.zeros(self._rows)

    def leading(self, rank: int) -> tuple[Array, Array]:
        return np.eye(self._rows, rank), np.zeros(rank)


class RandomisedFactors:
    """From a Gaussian sketch and power steps: no spectrum, and an error above the optimum.

    Steps are added until one lowers the error by less than 0.5 %, at most six. ``generator`` draws
    the sketch. Source: Halko, Martinsson, Tropp (SIAM Review 53, 2011); chapter 60 section 8.2.
    """

    def __init__(self, matrix: Tensor, scale: float, generator: torch.Generator) -> None:
        self._matrix = matrix.float() / scale
        self._scale = scale
        self._generator = generator

    def singular_values(self) -> Array:
        raise NotImplementedError("a sketch does not know the whole spectrum")

    def leading(self, rank: int) -> tuple[Array, Array]:
        matrix = self._matrix
        rows, columns = matrix.shape
        width = min(rank + _EXTRA_COLUMNS, rows)
        sketch = torch.randn(columns, width, generator=self._generator)
        basis = torch.linalg.qr(matrix @ sketch)[0]
        total = float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
        error = float("inf")
        for _ in range(_MOST_POWER_STEPS):
            basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis)[0])[0]
            left, values = self._rotate(basis, rank)
            previous, error = error, max(total - float(np.square(values).sum()), 0.0) ** 0.5
            if error >= (1 - _ENOUGH) * previous:
                break
        return left, self._scale * values

    def _rotate(self, basis: Tensor, rank: int) -> tuple[Array, Array]:
        """The best ``rank`` directions within ``basis`` (Rayleigh-Ritz), in float64."""
        exact = torch.linalg.qr(basis.double())[0].numpy()
        seen = np.zeros((exact.shape[1],) * 2)
        for block in scaled_blocks(self._matrix, 1.0):
            part = exact.T @ block
            seen += part @ part.T
        values, vectors = np.linalg.eigh(seen)
        return exact @ vectors[:, ::-1][:, :rank], _roots(values[::-1])[:rank]


def scaled_blocks(matrix: Tensor, scale: float) -> Iterator[Array]:
    """``matrix / scale`` in float64, a few hundred columns at a time: no copy of the whole."""
    for start in range(0, matrix.shape[1], _BLOCK):
        block: Array = matrix[:, start : start + _BLOCK].double().numpy() / scale
        yield block


def _roots(eigenvalues: Array) -> Array:
    """Singular values of descending eigenvalues; rounding may have made the last ones negative."""
    floor = _FLOOR * max(float(eigenvalues[0]), 0.0)
    roots: Array = np.sqrt(np.maximum(eigenvalues, floor))
    return roots
