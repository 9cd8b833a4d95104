"""HFMG against the specification's table and its section 9.2 written out with plain loops."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from activation_data import v
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from workbench.engine.algorithms.activation_scale import ActivationScale
from workbench.engine.algorithms.hfmg import HFMGObserver

Counts = list[int]


def observe(
    batches: list[Tensor],
    bits: int = 8,
    asymmetric: bool = True,
    bins: int = 1024,
    compat: bool = False,
) -> ActivationScale:
    observer = HFMGObserver(bits, asymmetric, bins, compat=compat)
    for batch in batches:
        observer.update(batch)
    return observer.result()


def rounding_error(x: Tensor, found: ActivationScale) -> float:
    codes = (torch.round(x / found.scale) + found.offset).clamp(-128, 127)
    return float(((codes - found.offset) * found.scale - x).square().mean())


def text_histogram(
    batches: list[npt.NDArray[np.float32]], bins: int
) -> tuple[Counts, float, float]:
    """Section 9.2, the state, one bin at a time; numpy's own histogram counts a batch."""
    counts: Counts = []
    lo = hi = 0.0
    for batch in batches:
        low, high = float(batch.min()), float(batch.max())
        if counts:
            low, high = min(lo, low), max(hi, high)
        ends = (low, high) if low < high else (low - 1, high + 1)
        new = [int(n) for n in np.histogram(batch.astype(np.float64), bins, ends)[0]]
        if counts:
            same = all(
                abs(a - b) <= 1.2e-7 or abs(a - b) <= 1e-9 * abs(a)
                for a, b in ((lo, low), (hi, high))
            )
            width = (high - low) / bins
            for i, n in enumerate(counts):
                if same:
                    new[i] += n
                    continue
                left = lo + i * (hi - lo) / bins
                right = left + (hi - lo) / bins
                a = min(max(math.floor((left - low) / width), 0), bins - 1)
                z = min(max(math.floor((right - low) / width), 0), bins - 1)
                part = n
                if a != z:
                    part = int(n * (low + (a + 1) * width - left) / (right - left))
                new[a] += part
                new[z] += n - part
        counts, lo, hi = new, low, high
    return counts, lo, hi


def text_windows(counts: Counts) -> list[tuple[int, int]]:
    """Step 1: walk in from both ends, move the end that takes more bins."""
    step = max(1, math.ceil(sum(counts) / 100000))
    left, right = 0, len(counts) - 1
    found = []
    while right - left > math.ceil(len(counts) / 4):
        skipped, from_left = 0, 0
        while skipped < step and left + from_left < right:
            skipped += counts[left + from_left]
            from_left += 1
        skipped, from_right = 0, 0
        while skipped < step and right - from_right > left:
            skipped += counts[right - from_right]
            from_right += 1
        if from_right >= from_left:
            right -= from_right
        else:
            left += from_left
        found.append((left, right))
    return found


def text_loss(counts: Counts, first: float, step: float, levels: int) -> float:
    """Step 2 for levels ``first + j * step``, in bins: pieces ``density * (q^3 - p^3) / 3``."""
    loss = 0.0
    edge = first - step / 2
    for i, n in enumerate(counts):
        if not n:
            continue
        begin = min(max(math.floor((i - edge) / step), 0), levels - 1)
        end = min(max(math.floor((i + 1 - edge) / step), 0), levels - 1)
        for j in range(begin, end + 1):
            centre = first + j * step
            p = i - centre if j == begin else -step / 2
            q = i + 1 - centre if j == end else step / 2
            loss += n * (q**3 - p**3) / 3
    return loss


def text_losses(
    counts: Counts, lo: float, hi: float, bits: int, asymmetric: bool
) -> tuple[list[tuple[int, int]], npt.NDArray[np.float64]]:
    """Candidates and losses with D14: full range first, symmetric grid when symmetric."""
    candidates = [(0, len(counts) - 1), *text_windows(counts)]
    width = (hi - lo) / len(counts)
    losses = []
    for left, right in candidates:
        if asymmetric:
            step = (right - left + 1) / 2**bits
            losses.append(text_loss(counts, left + step / 2, step, 2**bits))
        else:
            scale = symmetric(lo + left * width, lo + (right + 1) * width, bits)
            first = (-(2 ** (bits - 1)) * scale - lo) / width
            losses.append(text_loss(counts, first, scale / width, 2**bits))
    return candidates, np.array(losses)


def symmetric(low: float, high: float, bits: int) -> float:
    return max(
        abs(low) / 2 ** (bits - 1) if abs(high) < abs(low) else 0,
        abs(high) / (2 ** (bits - 1) - 1) if abs(high) >= abs(low) else 0,
    )


def text_scale(low: float, high: float, bits: int, asymmetric: bool) -> tuple[float, int]:
    if not asymmetric:
        return symmetric(low, high, bits), 0
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    return scale, round(-(2 ** (bits - 1)) - low / scale)


TABLE = [
    ((0, 1), 8, True, 1024, 0.02331471, -33),
    ((0, 1), 8, False, 1024, 0.02929725, 0),
    ((0, 1), 16, True, 1024, 9.107483e-05, -8343),
    ((0, 1), 16, False, 1024, 1.142640e-04, 0),
    ((0,), 8, True, 1024, 0.02330394, -33),
    ((0,), 8, True, 4096, 0.02330966, -33),
]


@pytest.mark.parametrize(("ks", "bits", "asymmetric", "bins", "scale", "offset"), TABLE)
def test_table_of_the_specification(
    ks: tuple[int, ...], bits: int, asymmetric: bool, bins: int, scale: float, offset: int
) -> None:
    result = observe([v(k) for k in ks], bits, asymmetric, bins, compat=True)
    assert result.scale == pytest.approx(scale, rel=1e-4)
    assert result.offset == offset


@pytest.mark.parametrize("compat", [True, False])
@pytest.mark.parametrize("batches", [1, 3])
def test_zeros_and_constants(batches: int, compat: bool) -> None:
    zeros, fives = [torch.zeros(100)] * batches, [torch.full((100,), 5.0)] * batches
    assert observe(zeros, compat=compat) == ActivationScale(1.0, -128)
    assert observe(zeros, asymmetric=False, compat=compat) == ActivationScale(1.0, 0)
    result = observe(fives, compat=compat)
    assert (result.scale, result.offset) == (pytest.approx(5 / 255, rel=1e-6), -128)
    result = observe(fives, asymmetric=False, compat=compat)
    assert (result.scale, result.offset) == (pytest.approx(5 / 127, rel=1e-6), 0)


def test_negative_data_has_its_zero_at_the_top() -> None:
    result = observe([-torch.rand(5000, generator=torch.Generator().manual_seed(1)) - 0.1])
    assert result.offset == 127


shapes = st.sampled_from(["normal", "relu", "heavy", "levels", "far", "outlier"])


def data(kind: str, count: int, seed: int) -> Tensor:
    normal = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    if kind == "outlier":
        normal[0] = 40.0
    return {
        "normal": normal,
        "relu": normal.relu(),
        "heavy": normal**3,
        "levels": (normal * 3).round() / 4,
        "far": normal * 0.01 + 100,
        "outlier": normal,
    }[kind]


@settings(deadline=None, max_examples=60)
@given(
    kind=shapes,
    counts=st.lists(st.integers(1, 2000), min_size=1, max_size=4),
    growth=st.sampled_from([1.0, 1.7, 0.5]),
    bins=st.sampled_from([1024, 2048]),
)
def test_streaming_equals_the_text(kind: str, counts: list[int], growth: float, bins: int) -> None:
    batches = [data(kind, n, i) * growth**i for i, n in enumerate(counts)]
    observer = HFMGObserver(8, True, bins)
    for batch in batches:
        observer.update(batch)
    wanted, low, high = text_histogram([b.numpy() for b in batches], bins)
    assert (observer.low, observer.high) == (low, high)
    assert observer.counts.sum() == sum(counts)
    # A value on a border may fall on either side of it in float32.
    apart = np.abs(np.cumsum(observer.counts) - np.cumsum(wanted))
    assert apart.max() <= max(2, 0.005 * sum(counts)) or kind == "levels"
    moved = np.abs(np.cumsum(np.cumsum(observer.counts) - np.cumsum(wanted)))
    assert moved.max() <= 0.01 * bins * sum(counts)


@settings(deadline=None, max_examples=25)
@given(
    kind=shapes,
    count=st.integers(2, 3000),
    bits=st.sampled_from([4, 8, 11, 16]),
    asymmetric=st.booleans(),
    seed=st.integers(0, 100),
)
def test_window_has_the_smallest_loss_of_the_text(
    kind: str, count: int, bits: int, asymmetric: bool, seed: int
) -> None:
    observer = HFMGObserver(bits, asymmetric, 64)
    observer.update(data(kind, count, seed))
    assume(observer.low < observer.high)
    counts, low, high = observer.counts.tolist(), observer.low, observer.high
    candidates, losses = text_losses(counts, low, high, bits, asymmetric)
    result = observer.result()
    width = (high - low) / len(counts)
    scales = [
        text_scale(low + left * width, low + (right + 1) * width, bits, asymmetric)
        for left, right in candidates
    ]
    near = np.flatnonzero(losses <= losses.min() * (1 + 1e-6) + 1e-9)
    assert any(
        result.scale == pytest.approx(scales[i][0], rel=1e-6)
        and abs(result.offset - scales[i][1]) <= (1 if bits < 16 else 2)
        for i in near
    )


def test_full_range_wins_where_clipping_only_costs() -> None:
    # Evenly spread data: every narrower window clips, so D14's added candidate is the best.
    x = torch.linspace(-1, 1, 200_001)
    assert observe([x], bits=4).scale == pytest.approx(2 / 15, rel=1e-3)
    assert observe([x], bits=4, compat=True).scale < observe([x], bits=4).scale


def test_symmetric_layers_are_judged_on_their_own_grid() -> None:
    x = [v(0), v(1)]
    scales = {compat: observe(x, 8, False, compat=compat).scale for compat in (True, False)}
    values = torch.cat(x).double().numpy()

    def error(scale: float) -> float:
        codes = np.clip(np.rint(values / scale), -128, 127)
        return float(((codes * scale - values) ** 2).mean())

    assert scales[True] != scales[False]
    assert error(scales[False]) <= error(scales[True])


def test_a_tiny_range_is_not_taken_for_zero() -> None:
    # D10: with 16 bits the reference gives up below a span of 0.0078.
    x = v(0) * 1e-6
    assert observe([x], 16).scale == pytest.approx(observe([v(0)], 16).scale * 1e-6, rel=1e-3)
    assert observe([x], 16, compat=True) == ActivationScale(1.0, -(2**15))


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e37, 1.7e38])
def test_extreme_ranges_are_counted_whole(size: float) -> None:
    observer = HFMGObserver(8, True, 1024)
    observer.update(torch.linspace(-1, 1, 5000) * size)
    assert observer.counts.sum() == 5000
    assert observer.counts.max() <= 20 or size < 1e-40


def test_layout_dtype_and_sampling() -> None:
    x = data("normal", 3 * 8 * 64 * 64, 5).reshape(3, 8, 64, 64)
    whole = observe([x])
    assert observe([x.to(memory_format=torch.channels_last)]) == whole
    assert observe([x.double()]) == whole
    half = x.half()
    assert observe([half]) == observe([half.float()])
    sampled = HFMGObserver(8, True, 1024, sample_limit=20_000)
    sampled.update(x)
    assert (sampled.low, sampled.high) == (float(x.min()), float(x.max()))
    assert sampled.counts.sum() < 25_000
    assert rounding_error(x, sampled.result()) < 1.1 * rounding_error(x, whole)


def test_counts_beyond_int32() -> None:
    observer = HFMGObserver(8, True, 1024)
    observer.update(data("normal", 1000, 1))
    few = observer.result()
    observer.counts = observer.counts * 5_000_000
    observer.update(torch.zeros(1))
    assert observer.counts.sum() == 5_000_000_001
    assert observer.result().scale == pytest.approx(few.scale, rel=0.02)


def test_errors() -> None:
    observer = HFMGObserver(8, True)
    with pytest.raises(TypeError):
        observer.update(torch.ones(3, dtype=torch.int64))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(RuntimeError):
            observer.update(torch.tensor([1.0, bad]))
    observer.update(torch.empty(0))
    with pytest.raises(RuntimeError, match="no batch"):
        observer.result()
