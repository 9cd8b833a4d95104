"""The rank rule of tensor decomposition against the specification's golden vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from workbench.engine.algorithms.evbmf import (
    energy_rank,
    estimate_noise,
    possible_ranks,
    round_rank,
    select_rank,
)

Values = NDArray[np.float64]


def index(rows: int) -> Values:
    return np.arange(1.0, rows + 1)


def falling(rows: int) -> Values:
    return 1 - (index(rows) - 1) / rows


def band_of(rows: int, strong: int) -> Values:
    return 20 * (index(rows) <= strong) + 2 * falling(rows) + 0.001


# Chapter 60 section 4: channels (min), L, M, values, lower, upper, variance, EV, rank.
GOLDEN = [
    (256, 768, 768, 10 * falling(768), 0.0110067, 0.0434876, 0.0434815, 0, 160),
    (256, 768, 768, 20 * index(768) ** -0.5, 9.41429e-4, 4.8975e-3, 2.15351e-3, 49, 160),
    (256, 768, 768, 2 * index(768) ** -0.5, 9.41429e-6, 4.8975e-5, 2.45251e-5, 43, 160),
    (
        512, 1536, 1536, 20 * np.exp(-6 * (index(1536) - 1) / 1536),
        1.32476e-4, 0.0217861, 1.75371e-3, 437, 384,
    ),
    (256, 768, 768, band_of(768, 170), 4.4158e-4, 0.137563, 1.47799e-3, 170, 176),
    (256, 768, 2560, band_of(768, 165), 2.91246e-5, 0.0400923, 3.49073e-4, 165, 160),
    (192, 576, 576, band_of(576, 90), 5.91564e-4, 0.130867, 2.03278e-3, 90, 96),
    (64, 192, 192, np.zeros(192), 0.0, 0.0, 0.0, 0, 32),
]  # fmt: skip


@pytest.mark.parametrize(
    ("channels", "rows", "columns", "values", "lower", "upper", "variance", "strong", "rank"),
    GOLDEN,
)
def test_golden_vectors(
    channels: int,
    rows: int,
    columns: int,
    values: Values,
    lower: float,
    upper: float,
    variance: float,
    strong: int,
    rank: int,
) -> None:
    found = estimate_noise(values, columns)
    assert found.lower == pytest.approx(lower, rel=1e-5)
    assert found.upper == pytest.approx(upper, rel=1e-5)
    assert found.variance == pytest.approx(variance, rel=1e-5)
    assert found.rank == strong
    assert select_rank(found.rank, rows, channels) == rank


def test_the_search_is_the_bounded_minimum_of_the_written_out_objective() -> None:
    rows, columns = 40, 100
    values = np.sort(np.random.default_rng(3).gamma(2.0, 3.0, rows))[::-1]
    alpha = rows / columns
    tau = 2.5129 * math.sqrt(alpha)
    edge = (1 + tau) * (1 + alpha / tau)

    def objective(v: float) -> float:
        total = 0.0
        for value in values:
            x = value**2 / (columns * v)
            if x > edge:
                t = 0.5 * (x - (1 + alpha) + math.sqrt((x - (1 + alpha)) ** 2 - 4 * alpha))
                total += x - t + math.log((t + 1) / x) + alpha * math.log(t / alpha + 1)
            else:
                total += x - math.log(x)
        return total

    found = estimate_noise(values, columns)
    wanted = minimize_scalar(
        objective,
        bounds=(found.lower, found.upper),
        method="bounded",
        options={"xatol": 1e-5, "maxiter": 500},
    ).x
    assert found.variance == pytest.approx(wanted, rel=1e-9)
    assert found.rank == sum(v > math.sqrt(columns * wanted * edge) for v in values)


def test_a_zero_among_the_values_sends_the_search_to_its_upper_end() -> None:
    values = band_of(768, 170)
    values[-1] = 0.0
    found = estimate_noise(values, 768)
    assert found.variance == pytest.approx(found.upper, abs=2e-5)
    assert found.rank < 170


def test_relative_tolerance_does_not_see_the_scale() -> None:
    values = band_of(768, 176)
    ranks = {estimate_noise(values * s, 768, relative=True).rank for s in (1e-3, 1.0, 1e3)}
    assert ranks == {176}
    slow = 20 * index(768) ** -0.5
    scaled = [estimate_noise(slow * s, 768, relative=True) for s in (0.1, 1.0)]
    assert scaled[0].rank == scaled[1].rank
    assert scaled[1].variance == pytest.approx(100 * scaled[0].variance, rel=1e-12)


# Chapter 60 section 4: ranks of square kernels 3, 5 and 7 with as many inputs as outputs.
@pytest.mark.parametrize(
    ("channels", "kernel", "ranks"),
    [
        (64, 3, [32]), (64, 5, [48]), (64, 7, [64, 80]),
        (96, 3, [48]), (96, 5, [64, 80]), (128, 5, [96, 112]),
        (160, 3, [64, 80]), (160, 7, [160, 176, 192]), (192, 5, [144, 160]),
        (255, 5, [176, 192, 208]), (256, 3, [160, 176, 192]),
        (512, 3, list(range(304, 385, 16))), (2048, 5, list(range(2048, 2561, 16))),
        (16, 7, [16, 32]), (32, 7, [32, 48]), (48, 7, [48, 64]),
    ],
)  # fmt: skip
def test_possible_ranks(channels: int, kernel: int, ranks: list[int]) -> None:
    assert list(possible_ranks(channels * kernel, channels)) == ranks


@given(st.integers(16, 20000), st.integers(1, 4096), st.integers(0, 20000))
@settings(max_examples=200, deadline=None)
def test_a_rank_is_a_multiple_of_16_or_full(rows: int, channels: int, estimated: int) -> None:
    rank = select_rank(estimated, rows, channels)
    assert 1 <= rank <= rows
    assert rank % 16 == 0 or rank == rows
    assert rank in possible_ranks(rows, channels)


def test_rounding() -> None:
    assert [round_rank(n, 1000) for n in (1, 17, 18, 23, 24, 40, 41)] == [
        16, 16, 32, 32, 32, 48, 48,
    ]  # fmt: skip
    assert round_rank(100, 90) == 90


def test_energy() -> None:
    values = np.sqrt(np.array([50.0, 30.0] + [1.0] * 20))
    assert energy_rank(values, 0.5) == 16
    assert energy_rank(values, 0.999) == 22
    assert energy_rank(np.zeros(40), 0.9) == 16
    many = np.ones(100)
    assert energy_rank(many, 0.32) == 32
    assert energy_rank(many, 0.33) == 48
