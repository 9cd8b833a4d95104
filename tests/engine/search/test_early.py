"""Early verdicts: simulated error rates at the border, exact bounds, power, misuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import hypergeom

from workbench.engine.search.early import SequentialTest, Strata, sequential_verdict

Array = NDArray[np.float64]

COUNT, RATE, RUNS = 300, 0.05, 300
ALLOWED = RATE + 3 * (RATE * (1 - RATE) / RUNS) ** 0.5


def hits(count: int, misses: int) -> Array:
    scores = np.ones(count)
    scores[:misses] = 0.0
    return scores


def wrong_verdicts(original: Array, new: Array, max_loss: float, **options: object) -> float:
    """Share of runs, each with an order of its own, that end differently from the whole set."""
    truth = float(np.sum(original - new)) <= max_loss * len(original) + 1e-9
    wrong = 0
    for key in range(RUNS):
        test = SequentialTest(original, max_loss, error_rate=RATE, key=key, chunk=30, **options)
        wrong += sequential_verdict(test, lambda i: new[i]).satisfied is not truth
    return wrong / RUNS


@pytest.mark.parametrize("misses", [6, 7])
def test_hits_and_misses_at_the_border(misses: int) -> None:
    """2 % of 300 samples may be lost: 6 is the last count that passes, 7 the first that fails."""
    assert wrong_verdicts(hits(COUNT, 0), hits(COUNT, misses), 0.02) <= ALLOWED


@pytest.mark.parametrize("misses", [6, 7])
def test_the_border_with_strata(misses: int) -> None:
    """Some samples can gain, some are known to be hard, the differences lie in all three parts."""
    original = hits(COUNT, 0)
    original[-20:] = 0.0
    quantized = original.copy()
    quantized[:30] = 0.0
    new = original.copy()
    new[:3] = 0.0
    new[100 : 100 + misses - 3 + 2] = 0.0
    new[-2:] = 1.0
    assert wrong_verdicts(original, new, 0.02, quantized=quantized) <= ALLOWED


@pytest.mark.parametrize("shift", [-1e-6, 1e-6])
def test_scores_between_bounds_at_the_border(shift: float) -> None:
    generator = np.random.default_rng(3)
    original = generator.uniform(0.5, 1.0, COUNT)
    new = np.clip(original - generator.exponential(0.03, COUNT), 0.0, 1.0)
    border = float(np.mean(original - new))
    assert wrong_verdicts(original, new, border + shift, limits=(0.0, 1.0)) <= ALLOWED


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60),
    st.integers(0, 10),
    st.integers(1, 7),
)
def test_bounds_never_err(pairs: list[tuple[bool, bool]], budget: int, chunk: int) -> None:
    """With an error rate of practically nothing only certainty decides."""
    original, new = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    max_loss = budget / len(pairs)
    test = SequentialTest(original, max_loss, error_rate=1e-300, chunk=chunk)
    verdict = sequential_verdict(test, lambda i: new[i])
    assert verdict.satisfied == (float(np.sum(original - new)) <= budget)
    assert verdict.seen <= len(pairs)
    if verdict.whole:
        assert verdict.loss == pytest.approx(float(np.mean(original - new)))


def test_without_a_difference_it_stops_where_the_hypergeometric_probability_says() -> None:
    count, failing, rate = 2000, 11, 1e-3
    test = SequentialTest(hits(count, 0), 0.005, error_rate=rate, chunk=1)
    seen = sequential_verdict(test, lambda i: np.ones(len(i))).seen
    assert hypergeom.pmf(0, count, failing, seen) <= rate
    # The price of betting on several rates at once: ten of them, so a factor of ten at most.
    assert hypergeom.pmf(0, count, failing, seen - 1) > rate / 10


@pytest.mark.parametrize(("lost", "share"), [(2, 0.5), (8, 0.65), (40, 0.15), (300, 0.1)])
def test_power(lost: int, share: float) -> None:
    """Clear cases of an example's size: 4,200 samples, 21 may be lost, 80 can gain."""
    generator = np.random.default_rng(lost)
    original = hits(4200, 80)
    quantized = original.copy()
    quantized[generator.permutation(np.arange(80, 4200))[:400]] = 0.0
    new = original.copy()
    new[generator.permutation(np.flatnonzero(quantized < original))[:lost]] = 0.0
    test = SequentialTest(original, 0.005, quantized=quantized)
    verdict = sequential_verdict(test, lambda i: new[i])
    assert verdict.satisfied == (lost <= 21)
    assert verdict.seen / 4200 <= share


def test_samples_that_can_gain_come_first_and_all_come_once() -> None:
    original, quantized = hits(100, 10), hits(100, 10)
    quantized[50:60] = 0.0
    strata = Strata.of(original, quantized, (0.0, 1.0))
    assert strata.gain.tolist() == list(range(10))
    assert strata.hard.tolist() == list(range(50, 60))
    orders = []
    for key in (1, 2):
        # The loss of exactly what is allowed is known to pass only when everything is seen.
        test = SequentialTest(original, 0.0, quantized=quantized, key=key, error_rate=1e-300)
        chunks = []
        while (chunk := test.next_indices()) is not None:
            chunks.append(chunk)
            test.observe(original[chunk])
        orders.append(np.concatenate(chunks).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(100))
    assert sorted(orders[0][:10]) == list(range(10))
    assert sorted(orders[0][10:20]) == list(range(50, 60))
    assert orders[0] != orders[1]


def test_scores_without_a_known_range_are_all_evaluated() -> None:
    original = np.linspace(20.0, 40.0, 500)
    verdict = sequential_verdict(SequentialTest(original, 0.5), lambda i: original[i] - 0.1)
    assert verdict.satisfied and verdict.whole
    assert verdict.loss == pytest.approx(0.1)


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="score_range"):
        SequentialTest(hits(9, 0), 0.1, limits=(1.0, 1.0))
    test = SequentialTest(hits(9, 0), 0.1)
    with pytest.raises(ValueError, match="not known yet"):
        test.result()
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        test.observe(np.full(9, 2.0))
    sequential_verdict(test, lambda i: np.ones(len(i)))
    with pytest.raises(ValueError, match="known already"):
        test.observe(np.ones(9))
