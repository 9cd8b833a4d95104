"""How many singular values of a convolution's kernel are kept: variational Bayes, then a band."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

_WIDE = 256
_STEP = 16


@dataclass(frozen=True)
class NoiseEstimate:
    """``variance`` of the noise, found in [``lower``, ``upper``]; ``rank`` values stand out of it.

    With ``relative`` tolerance the three are still in the matrix's own units (squared).
    """

    lower: float
    upper: float
    variance: float
    rank: int


def estimate_noise(
    singular_values: NDArray[np.float64], columns: int, *, relative: bool = False
) -> NoiseEstimate:
    """Empirical variational Bayesian matrix factorisation of a noisy L×M matrix.

    ``singular_values``: all L of them, descending; ``columns``: M >= L. The search for the variance
    ends at an absolute tolerance of 1e-5, as the reference's does; ``relative`` makes that a share
    of the upper bound, so that the rank does not depend on the scale of the weights.

    Source: Nakajima et al., "Global analytic solution of fully-observed variational Bayesian matrix
    factorization" (JMLR 14, 2013); specification chapter 60 sections 4 and 10 (D3).
    """
    rows = len(singular_values)
    power = np.square(singular_values)
    unit = float(power.sum()) / (rows * columns)
    if unit == 0.0:
        return NoiseEstimate(0.0, 0.0, 0.0, 0)
    if not relative:
        unit = 1.0
    power = power / unit
    alpha = rows / columns
    tau = 2.5129 * math.sqrt(alpha)
    edge = (1 + tau) * (1 + alpha / tau)
    tail = min(math.ceil(rows / (1 + alpha)) - 1, rows) - 1
    upper = float(power.sum()) / (rows * columns)
    lower = max(float(power[tail + 1]) / (columns * edge), float(np.mean(power[tail:])) / columns)

    def objective(variance: float) -> float:
        x = power / (columns * variance)
        signal, noise = x[x > edge], x[x <= edge]
        centred = signal - (1 + alpha)
        t = (centred + np.sqrt(np.square(centred) - 4 * alpha)) / 2
        return float(
            np.sum(noise - np.log(noise))
            + np.sum(signal - t)
            + np.sum(np.log((t + 1) / signal))
            + alpha * np.sum(np.log(t / alpha + 1))
        )

    if lower > upper:
        variance = (lower + upper) / 2
    else:
        # A singular value of exactly 0 makes the objective infinite: the search then ends at upper.
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = float(
                minimize_scalar(
                    objective,
                    bounds=(lower, upper),
                    method="bounded",
                    options={"xatol": 1e-5, "maxiter": 500},
                ).x
            )
    rank = int(np.count_nonzero(np.sqrt(power) > math.sqrt(columns * variance * edge)))
    return NoiseEstimate(lower * unit, upper * unit, variance * unit, rank)


def band(rows: int, channels: int) -> tuple[int, int]:
    """Smallest and largest share of the ``rows`` (L) a kernel may keep, before rounding.

    ``channels`` is the smaller of a convolution's two channel counts.
    """
    divisor = 4 if channels >= _WIDE else 6
    return rows // (divisor + 1), rows // divisor


def round_rank(wanted: int, rows: int) -> int:
    """``wanted`` as a multiple of 16, at least 16 and at most ``rows``.

    To the nearest multiple; up where that would lose more than a tenth of what is wanted.
    """
    rank = max(_STEP, (wanted + _STEP // 2) // _STEP * _STEP)
    if rank < 0.9 * wanted:
        rank += _STEP
    return min(rank, rows)


def select_rank(estimated: int, rows: int, channels: int) -> int:
    """The rank for an ``estimated`` number of strong singular values (chapter 60 section 4)."""
    low, high = band(rows, channels)
    return round_rank(max(min(estimated, high), low), rows)


def possible_ranks(rows: int, channels: int) -> tuple[int, ...]:
    """Every rank ``select_rank`` can give, ascending; with one, no spectrum is needed."""
    low, high = band(rows, channels)
    return tuple(sorted({round_rank(wanted, rows) for wanted in range(low, high + 1)}))


def energy_rank(singular_values: NDArray[np.float64], share: float) -> int:
    """Fewest values that hold ``share`` of the sum of squares, rounded up to a multiple of 16."""
    power = np.cumsum(np.square(singular_values))
    rows = len(singular_values)
    if power[-1] == 0.0:
        return min(_STEP, rows)
    needed = int(np.searchsorted(power, share * power[-1])) + 1
    return min(-(-needed // _STEP) * _STEP, rows)
