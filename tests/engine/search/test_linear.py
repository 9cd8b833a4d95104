"""Greedy search and bisection with a second look, on metrics of which the answer is known."""

import pytest
from search_case import LAYERS, Whole, names, search

from workbench.engine.search.linear import GreedyStrategy


class Cuts(Whole):
    """Passes for exactly these numbers of float layers."""

    def __init__(self, passing):
        super().__init__({}, 0.0)
        self.passing, self.tried = passing, []

    def evaluate(self, model):
        count = len(LAYERS) - len(names(model))
        self.tried.append(count)
        # The original and the final evaluation are of the same kind.
        return 1.0 if count in self.passing or self.tried == [len(LAYERS)] else 0.0


def tried(evaluator):
    return evaluator.tried[1:]  # without the original


@pytest.mark.parametrize("smallest", range(1, len(LAYERS)))
def test_greedy_goes_up_one_by_one_to_the_first_pass(smallest):
    evaluator = Cuts(range(smallest, 7))
    result = search(evaluator, strategy="Greedy")
    assert len(result.trials[-1].float_layers) == smallest
    assert tried(evaluator) == [*range(smallest + 1), smallest]
    ranked = list(result.ranking)
    assert set(result.trials[-1].float_layers) == set(ranked[:smallest])


def test_greedy_can_draw_the_whole_curve():
    evaluator = Cuts({2, 3, 5})
    result = search(evaluator, strategy=GreedyStrategy(stop_at_first_pass=False))
    assert tried(evaluator) == [0, 1, 2, 3, 4, 5, 2]
    assert len(result.trials[-1].float_layers) == 2


def test_greedy_ends_with_everything_in_float():
    result = search(Cuts(()), strategy="Greedy")
    assert not result.satisfied and not any(result.trials[-1].quantized.values())


@pytest.mark.parametrize(
    ("passing", "bisection", "verified"),
    [
        # 3 passes, 1 and 2 do not: nothing is left to look at.
        ({3, 4, 5}, [0, 3, 1, 2, 3], [0, 3, 1, 2, 3]),
        # 3 misses, 5 passes, 4 misses; 2 was never judged, and passes; 1 does not.
        ({2, 5}, [0, 3, 5, 4, 5], [0, 3, 5, 4, 2, 1, 2]),
        ({1, 2, 5}, [0, 3, 5, 4, 5], [0, 3, 5, 4, 2, 1, 1]),
    ],
)
def test_the_second_look_finds_what_bisection_jumps_over(passing, bisection, verified):
    for strategy, expected in (("BinarySearch", bisection), ("BinarySearchVerified", verified)):
        evaluator = Cuts(passing)
        result = search(evaluator, strategy=strategy)
        assert tried(evaluator) == expected
        assert len(result.trials[-1].float_layers) == expected[-1]
