"""Strategies that walk along the ranking: one layer at a time, and bisection with a second look."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from workbench.engine.search.driving import ReferenceStrategy
from workbench.engine.search.judging import Judge, SearchStrategy, Trial
from workbench.engine.search.strategy import BinarySearchStrategy


class GreedyStrategy(SearchStrategy):
    """Leave one more of the most sensitive layers in float until the target holds.

    ``stop_at_first_pass`` False: every cut is judged, for the whole curve; the answer is the same.
    """

    def __init__(self, *, stop_at_first_pass: bool = True) -> None:
        self._stop = stop_at_first_pass

    def search(self, judge: Judge, first: Trial) -> Collection[str] | None:
        ranked = sensitive_first(judge)
        answer: Collection[str] | None = None
        cuts = [ranked[: k + 1] for k in range(len(ranked) - (len(ranked) == len(judge.layers)))]
        for number, cut in enumerate(cuts):
            if judge.workers > 1 and number % judge.workers == 0:
                judge.prefetch(cuts[number : number + judge.workers])
            if judge.trial(cut).satisfied and answer is None:
                answer = cut
                if self._stop:
                    break
        return answer


class BinarySearchVerifiedStrategy(SearchStrategy):
    """Bisection, then the nearest smaller cut that it has not judged, while that passes.

    Bisection trusts that fewer float layers are never better. It has always judged the cut just
    below its answer, so the second look goes to the next one below that.
    """

    def search(self, judge: Judge, first: Trial) -> Collection[str] | None:
        bisection = ReferenceStrategy(BinarySearchStrategy())
        answer = bisection.search(judge, first)
        ranked = sensitive_first(judge)
        best = len(ranked) if answer is None else len(answer)
        for cut in range(best - 1, 0, -1):
            if cut in bisection.counts:
                continue
            if not judge.trial(ranked[:cut]).satisfied:
                break
            answer = ranked[:cut]
        return answer


def sensitive_first(judge: Judge) -> Sequence[str]:
    """The layers that are not pinned, most sensitive first; ties keep config order."""
    pins, ranking = judge.pins, judge.ranking
    return sorted((name for name in ranking if name not in pins), key=lambda name: ranking[name])
