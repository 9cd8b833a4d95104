"""`Recover` over made-up networks: which samples fail is a function of the quantised layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from workbench.engine.search.judging import Choice, Trial
from workbench.engine.search.recover import RecoverStrategy


@dataclass
class FakeJudge:
    """Sample i misses when all layers of one of ``culprits[i]`` are quantised; counts its work."""

    layers: tuple[str, ...]
    ranking: dict[str, float]
    culprits: Sequence[Sequence[frozenset[str]]]
    max_loss: float | None
    pins: dict[str, bool] = field(default_factory=dict)
    has_scores: bool = True
    workers: int = 1
    evaluated: dict[frozenset[str], set[int]] = field(default_factory=dict)
    asked: list[frozenset[str]] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.culprits)

    @property
    def equivalents(self) -> float:
        return sum(map(len, self.evaluated.values())) / self.count

    def _score(self, floats: frozenset[str], indices: Sequence[int]) -> NDArray[np.float64]:
        self.evaluated.setdefault(floats, set()).update(indices)
        quantized = set(self.layers) - floats
        return np.array([float(not any(c <= quantized for c in self.culprits[i])) for i in indices])

    def _held(self, floats: Collection[str]) -> frozenset[str]:
        assert set(floats) <= set(self.layers)
        quantized = {n for n, on in self.pins.items() if on}
        return frozenset(floats) - quantized | {n for n, on in self.pins.items() if not on}

    def loss(self, floats: Collection[str]) -> float:
        quantized = set(self.layers) - set(floats)
        return sum(any(c <= quantized for c in culprits) for culprits in self.culprits) / self.count

    def trial(self, floats: Collection[str], phase: str = "search", *, full: bool = False) -> Trial:
        key = self._held(floats)
        assert key == frozenset(floats), "the strategy must honour pins itself"
        self._score(key, range(self.count))
        loss = self.loss(key)
        self.asked.append(key)
        satisfied = loss <= (0.05 if self.max_loss is None else self.max_loss)
        choices = {name: Choice(name not in key) for name in self.layers}
        return Trial(choices, satisfied, loss, 1.0 - loss, phase)

    def trials(self, candidates: Sequence[Collection[str]], phase: str = "search") -> list[Trial]:
        return [self.trial(candidate, phase) for candidate in candidates]

    def prefetch(self, candidates: Sequence[Collection[str]]) -> None:
        raise AssertionError("not for one worker")

    def scores(
        self, float_layers: Collection[str] | None, indices: Sequence[int] | None = None
    ) -> NDArray[np.float64] | None:
        if not self.has_scores:
            return None
        wanted = range(self.count) if indices is None else [int(i) for i in indices]
        if float_layers is None:
            return np.ones(len(wanted))
        return self._score(self._held(float_layers), wanted)


def run(judge: FakeJudge, budget: float = 7.0) -> tuple[str, ...] | None:
    pinned = [name for name, on in judge.pins.items() if not on]
    first = judge.trial(pinned, "all")
    assert not first.satisfied
    judge.asked.clear()
    answer = RecoverStrategy(budget=budget).search(judge, first)
    return None if answer is None else tuple(answer)


@st.composite
def judges(draw: st.DrawFn, *, scores: bool = True, pins: bool = False) -> FakeJudge:
    """Up to nine layers, 200 samples; a sample is lost by single layers or by pairs of them."""
    size = draw(st.integers(1, 9))
    layers = tuple(f"l{i}" for i in range(size))
    ranking = {name: draw(st.integers(0, 5)) / 5 for name in layers}
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    culprits: list[list[frozenset[str]]] = [[] for _ in range(200)]
    for name in layers:
        lost = draw(st.sampled_from([0, 0, 1, 3, 6, 15, 60]))
        for i in generator.permutation(200)[:lost]:
            culprits[i].append(frozenset({name}))
    for _ in range(draw(st.integers(0, 3)) if size > 1 else 0):
        pair = frozenset(generator.permutation(layers)[:2].tolist())
        for i in generator.permutation(200)[: draw(st.integers(0, 30))]:
            culprits[i].append(pair)
    held = draw(st.dictionaries(st.sampled_from(layers), st.booleans())) if pins else {}
    judge = FakeJudge(layers, ranking, culprits, 0.05, pins=held, has_scores=scores)
    if judge.loss([name for name, on in held.items() if not on]) <= 0.05:
        culprits.extend([[frozenset({name})] for name in layers if name not in held] * 20)
    return judge


def check(judge: FakeJudge, answer: tuple[str, ...] | None) -> None:
    if answer is None:
        held = {name for name, on in judge.pins.items() if on}
        everything = [name for name in judge.layers if name not in held]
        if judge.loss(everything) > 0.05:
            return
        assert not held, "leaving all others in float passes"
        answer = judge.layers
    assert judge.loss(answer) <= 0.05
    for name in answer:
        if name not in judge.pins:
            fewer = [other for other in answer if other != name]
            assert judge.loss(fewer) > 0.05, f"{name} could have been given back"


@settings(deadline=None, derandomize=True, max_examples=60)
@given(judges())
def test_the_answer_passes_and_no_layer_of_it_can_be_given_back(judge: FakeJudge) -> None:
    if judge.loss(()) <= 0.05:
        return
    check(judge, run(judge, budget=np.inf))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(judges(pins=True))
def test_pins_are_held(judge: FakeJudge) -> None:
    pinned = [name for name, on in judge.pins.items() if not on]
    if judge.loss(pinned) <= 0.05:
        return
    answer = run(judge, budget=np.inf)
    check(judge, answer)
    if answer is not None:
        assert all((name in answer) is not on for name, on in judge.pins.items())


@settings(deadline=None, derandomize=True, max_examples=60)
@given(judges(scores=False))
def test_without_scores_it_judges_whole_sets(judge: FakeJudge) -> None:
    if judge.loss(()) <= 0.05:
        return
    answer = run(judge, budget=np.inf)
    assert answer is None or judge.loss(answer) <= 0.05
    # Gallop and bisection take 2 log2(n) + 1, a group test at most two for each layer.
    assert len(judge.asked) <= 2 * np.log2(len(judge.layers)) + 1 + 2 * len(judge.layers)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(judges(), st.floats(1.0, 6.0))
def test_within_a_budget_it_still_passes(judge: FakeJudge, budget: float) -> None:
    if judge.loss(()) <= 0.05:
        return
    answer = run(judge, budget)
    assert answer is None or judge.loss(answer) <= 0.05


def planted(hard: dict[str, int], *, has_scores: bool = True, size: int = 24) -> FakeJudge:
    """4,000 samples; ``hard`` layers lose so many each, all layers one; ranked as they are named
    after their damage, but for the last layer, which no ranking suspects."""
    layers = tuple(f"l{i:02}" for i in range(size))
    generator = np.random.default_rng(5)
    culprits: list[list[frozenset[str]]] = [[] for _ in range(4000)]
    for name in layers:
        for i in generator.permutation(4000)[: hard.get(name, 1)]:
            culprits[i].append(frozenset({name}))
    ranking = {name: float(place) for place, name in enumerate(layers)}
    max_loss = 0.01 if has_scores else None
    return FakeJudge(layers, ranking, culprits, max_loss, has_scores=has_scores)


def test_harmless_layers_at_the_front_of_the_ranking_are_given_back() -> None:
    judge = planted({"l03": 2000, "l07": 600, "l09": 90})
    assert run(judge) == ("l03", "l07", "l09")
    assert smallest_of(judge, ("l03", "l07", "l09"))
    assert judge.equivalents <= 7


def test_a_needed_layer_at_the_end_of_the_ranking_is_found() -> None:
    judge = planted({"l02": 1500, "l23": 1200})
    assert run(judge) == ("l02", "l23")
    assert judge.equivalents <= 7


def smallest_of(judge: FakeJudge, answer: tuple[str, ...]) -> bool:
    size = len(answer) - 1
    return all(judge.loss(subset) > 0.01 for subset in combinations(judge.layers, size))


def test_the_same_search_twice() -> None:
    hard = {"l01": 500, "l05": 45, "l08": 30, "l11": 300}
    first, second = planted(hard), planted(hard)
    assert run(first) == run(second)
    assert first.asked == second.asked


@pytest.mark.parametrize("layers", [1, 2])
def test_everything_in_float_is_none(layers: int) -> None:
    names = tuple(f"l{i}" for i in range(layers))
    culprits = [[frozenset({name}) for name in names]] * 100
    judge = FakeJudge(names, dict.fromkeys(names, 0.5), culprits, 0.05)
    assert run(judge) is None
