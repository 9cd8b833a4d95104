"""IFMR against the specification's table and a brute-force search in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from activation_data import v
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workbench.engine.algorithms.activation_scale import ActivationScale
from workbench.engine.algorithms.batch import flat_view
from workbench.engine.algorithms.ifmr import IFMRObserver, candidate_ratios

EVERYTHING = 1 << 30


def observe(
    batches: list[Tensor],
    bits: int = 8,
    asymmetric: bool = True,
    percentile: float = 0.999999,
    budget: int = EVERYTHING,
    sample_limit: int | None = None,
) -> ActivationScale:
    observer = IFMRObserver(
        bits,
        asymmetric,
        percentile,
        percentile,
        byte_budget=budget,
        sample_limit=sample_limit,
    )
    for batch in batches:
        observer.update(batch)
    return observer.result()


def brute_force(
    x: npt.NDArray[np.float32], bits: int, asymmetric: bool, percentile: float = 0.999999
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Scale and loss of each candidate, straight from section 9.1, in float64."""
    ordered = np.sort(x.astype(np.float64))
    k = 1 if 1 - percentile < 1.2e-7 else max(1, len(x) - int(percentile * len(x)))
    vmax, vmin = max(0.0, ordered[-k]), min(0.0, ordered[k - 1])
    ratios = 0.7 + 0.01 * np.arange(61)
    if asymmetric:
        high = ratios * vmax
        low = np.full_like(high, vmin)
        scale = (high - vmin) / (2**bits - 1)
    else:
        high = ratios * max(abs(vmax), abs(vmin))
        low = -high
        scale = high / (2 ** (bits - 1) - (0 if abs(vmax) < abs(vmin) else 1))
    scale = np.where(scale == 0, 1.0, scale)
    loss = [
        np.mean((np.rint(np.clip(x.astype(np.float64), lo, hi) / s) * s - x) ** 2)
        for s, lo, hi in zip(scale, low, high, strict=True)
    ]
    return scale, np.array(loss)


def assert_best(
    result: ActivationScale,
    x: Tensor,
    bits: int,
    asymmetric: bool,
    percentile: float = 0.999999,
    slack: float = 1e-5,
) -> None:
    scale, loss = brute_force(x.float().numpy().ravel(), bits, asymmetric, percentile)
    index = int(np.argmin(abs(scale - result.scale)))
    assert result.scale == pytest.approx(scale[index], rel=1e-5)
    assert loss[index] <= loss.min() * (1 + slack) + 1e-12 * scale.max() ** 2


TABLE = [
    ((0, 1), 8, True, 0.999999, 0.02342911, -33),
    ((0, 1), 8, False, 0.999999, 0.02893641, 0),
    ((0, 1), 16, True, 0.999999, 9.116386e-05, -8367),
    ((0, 1), 16, False, 0.999999, 1.144420e-04, 0),
    ((0,), 8, True, 0.999999, 0.02341829, -33),
    ((0,), 8, True, 0.99, 0.009312009, -47),
]


@pytest.mark.parametrize("budget", [EVERYTHING, 0])
@pytest.mark.parametrize(("ks", "bits", "asymmetric", "percentile", "scale", "offset"), TABLE)
def test_table_of_the_specification(
    ks: tuple[int, ...],
    bits: int,
    asymmetric: bool,
    percentile: float,
    scale: float,
    offset: int,
    budget: int,
) -> None:
    result = observe([v(k) for k in ks], bits, asymmetric, percentile, budget)
    assert result.scale == pytest.approx(scale, rel=1e-6)
    assert result.offset == offset


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize(("start", "end", "step"), [(0.3, 1.0, 0.05), (0.95, 1.5, 0.1), (1, 2, 1)])
@pytest.mark.parametrize("percentiles", [(0.99, 1.0), (1.0, 0.97), (0.999999, 0.9)])
def test_ranges_steps_and_percentiles(
    bits: int,
    asymmetric: bool,
    start: float,
    end: float,
    step: float,
    percentiles: tuple[float, float],
) -> None:
    x = torch.cat([v(0), v(1)])
    observer = IFMRObserver(
        bits, asymmetric, *percentiles, (start, end), step, byte_budget=EVERYTHING
    )
    observer.update(x)
    result = observer.result()
    ordered = np.sort(x.numpy().astype(np.float64))
    ranks = [
        1 if 1 - p < 1.2e-7 else max(1, len(ordered) - int(p * len(ordered))) for p in percentiles
    ]
    high, low = max(0.0, ordered[-ranks[0]]), min(0.0, ordered[ranks[1] - 1])
    negative = high < -low
    found = []
    for i in range(round((end - start) / step + 0.499)):
        top = (start + i * step) * (high if asymmetric else max(high, -low))
        scale = (
            (top - low) / (2**bits - 1)
            if asymmetric
            else top / (2 ** (bits - 1) - (0 if negative else 1))
        )
        clipped = np.clip(ordered, low if asymmetric else -top, top)
        found.append((((np.rint(clipped / scale) * scale - ordered) ** 2).mean(), scale))
    loss = min(found)[0]
    near = [s for other, s in found if other <= loss * (1 + 1e-4)]
    assert any(result.scale == pytest.approx(s, rel=1e-5) for s in near)
    offset = -round(low / result.scale) - 2 ** (bits - 1) if asymmetric else 0
    assert abs(result.offset - offset) <= (bits == 16)


@pytest.mark.parametrize("budget", [EVERYTHING, 0])
@pytest.mark.parametrize("count", [100, 200_000])
def test_zeros_constants_and_negative_data(count: int, budget: int) -> None:
    zeros, fives = torch.zeros(count), torch.full((count,), 5.0)
    assert observe([zeros], budget=budget) == ActivationScale(1.0, -128)
    assert observe([zeros], asymmetric=False, budget=budget) == ActivationScale(1.0, 0)
    result = observe([fives], budget=budget)
    assert (result.scale, result.offset) == (pytest.approx(5 / 255, rel=1e-6), -128)
    result = observe([fives], asymmetric=False, budget=budget)
    assert (result.scale, result.offset) == (pytest.approx(5 / 127, rel=1e-6), 0)
    negative = -torch.rand(count) - 0.1
    result = observe([negative], percentile=1.0, budget=budget)
    assert result.scale == pytest.approx(-float(negative.min()) / 255, rel=1e-6)
    assert result.offset == 127


def test_default_candidates() -> None:
    ratios = candidate_ratios((0.7, 1.3), 0.01)
    assert len(ratios) == 61
    assert [ratios[0], ratios[-1]] == pytest.approx([0.7, 1.3], rel=1e-6)


def data(kind: str, count: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    normal = torch.randn(count, generator=g)
    return {
        "normal": normal,
        "relu": normal.relu(),
        "heavy": normal**3,
        "shifted": normal * 0.1 + 3,
        "negative": -normal.abs(),
        "levels": (normal * 20).round() / 20,
        "sparse": normal * (torch.rand(count, generator=g) < 0.01),
    }[kind]


KINDS = ["normal", "relu", "heavy", "shifted", "negative", "levels", "sparse"]


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    count=st.integers(1, 3000),
    bits=st.sampled_from([4, 8, 16]),
    asymmetric=st.booleans(),
    percentile=st.sampled_from([0.9, 0.999999, 1.0]),
    size=st.floats(1e-3, 1e3),
)
def test_small_data_is_searched_exactly(
    kind: str, count: int, bits: int, asymmetric: bool, percentile: float, size: float
) -> None:
    x = data(kind, count, count) * size
    result = observe(list(x.split(997)), bits, asymmetric, percentile)
    # The float32 arithmetic of the objective leaves 16-bit candidates a little apart from float64.
    assert_best(result, x, bits, asymmetric, percentile, slack=1e-4 if bits < 16 else 0.02)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asymmetric", [True, False])
def test_large_data_that_is_kept_gives_the_exact_minimum(kind: str, asymmetric: bool) -> None:
    x = data(kind, 300_000, 1)
    assert_best(observe(list(x.split(70_000)), 8, asymmetric), x, 8, asymmetric)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("budget", [0, 500_000])
def test_data_beyond_the_budget_is_counted_and_loses_next_to_nothing(
    kind: str, asymmetric: bool, budget: int
) -> None:
    x = data(kind, 300_000, 2)
    # Growing batches: the grid has to be widened several times.
    scaled = [part * (i + 1) for i, part in enumerate(x.split(40_000))]
    result = observe(scaled, 8, asymmetric, budget=budget)
    assert_best(result, torch.cat(scaled), 8, asymmetric, slack=0.002)


def test_a_later_outlier_beyond_the_percentile_costs_no_resolution() -> None:
    x = data("normal", 1_500_000, 3)
    x[1_200_000] = 1e6
    parts = list(x.split(500_000))
    result = observe(parts, 8, True, budget=0)
    # k is 2 for this count, so the outlier itself bounds nothing.
    assert result.scale < 0.1
    assert_best(result, x, 8, True, slack=1e-3)


def test_sixteen_bits_beyond_small_data() -> None:
    x = data("normal", 150_000, 4)
    assert_best(observe([x], 16, True), x, 16, True, slack=0.02)
    thinned = observe(list(x.split(50_000)), 16, True, budget=300_000)
    assert_best(thinned, x, 16, True, slack=0.1)


def test_low_percentile_over_the_budget() -> None:
    x = data("normal", 200_000, 5)
    result = observe([x], 8, True, 0.95, budget=0)
    scale, loss = brute_force(x.numpy(), 8, True, 0.95)
    index = int(np.argmin(abs(scale - result.scale)))
    assert result.scale == pytest.approx(scale[index], rel=1e-3)
    assert loss[index] <= loss.min() * 1.01


def test_sampling_keeps_extremes_and_comes_close() -> None:
    x = data("normal", 400_000, 6)
    x[12_345] = 9.0
    whole = observe([x], percentile=1.0)
    sampled = observe([x], percentile=1.0, sample_limit=20_000)
    assert sampled.scale == pytest.approx(whole.scale, rel=0.05)
    # The zero point shows that the smallest value was seen: vmin / scale is the same multiple.
    assert (sampled.offset + 128) * sampled.scale == pytest.approx(-float(x.min()), abs=0.05)


def test_layout_and_dtype_do_not_matter() -> None:
    x = data("normal", 2 * 3 * 16 * 16, 7).reshape(2, 3, 16, 16)
    expected = observe([x])
    nhwc = x.to(memory_format=torch.channels_last)
    assert flat_view(nhwc).data_ptr() == nhwc.data_ptr()
    assert observe([nhwc]) == expected
    assert observe([x.transpose(1, 3)[:, :, ::2], x.transpose(1, 3)[:, :, 1::2]]) == expected
    assert observe([x.double()]) == expected
    half = x.half()
    assert observe([half]) == observe([half.float()])


def test_the_batch_is_copied_not_kept() -> None:
    x = data("normal", 1000, 8)
    observer = IFMRObserver(8, True, byte_budget=EVERYTHING)
    observer.update(x)
    expected = observe([x])
    x.zero_()
    assert observer.result() == expected


def test_errors() -> None:
    observer = IFMRObserver(8, True, byte_budget=0)
    with pytest.raises(TypeError):
        observer.update(torch.ones(3, dtype=torch.int64))
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(RuntimeError):
            observer.update(torch.tensor([1.0, bad]))
    with pytest.raises(RuntimeError):
        observer.result()


def test_memory_stays_within_the_budget() -> None:
    observer = IFMRObserver(16, True, byte_budget=400_000)
    for _ in range(10):
        observer.update(torch.rand(50_000))
    assert observer._kept_bytes <= 400_000
