"""The search charts: where trials and the target line stand."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from workbench.charts import bracket_strip, search_chart

COLUMNS = [
    "trial",
    "phase",
    "metric",
    "loss",
    "satisfied",
    "seconds",
    "n_float",
    "float_layers",
    "config_hash",
    "kind",
]


def trials(metric: bool = True) -> pd.DataFrame:
    rows = [
        (0, "original", 0.98, 0.0, True, 1.0, 4, (), "a", "float"),
        (1, "all", 0.90, 0.08, False, 1.0, 0, (), "b", "all"),
        (2, "probe", 0.97, 0.01, False, 1.0, 0, (), "c", "probe"),
        (3, "search", 0.979, 0.001, True, 1.0, 2, ("x", "y"), "d", "trial"),
        (4, "final", 0.979, 0.001, True, 1.0, 2, ("x", "y"), "d", "final"),
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table if metric else table.assign(metric=math.nan)


def points(figure: object) -> dict[int, float]:
    return {
        int(number): value
        for trace in figure.data  # type: ignore[attr-defined]
        for number, value in zip(trace.customdata, trace.y, strict=True)
    }


def test_every_trial_is_one_point_and_the_line_is_float_minus_loss() -> None:
    figure = search_chart(trials(), 0.005, metric_name="top-1")
    assert points(figure) == pytest.approx({0: 98, 1: 90, 2: 97, 3: 97.9, 4: 97.9})
    assert figure.layout.shapes[0].y0 == pytest.approx(97.5)
    assert figure.layout.yaxis.ticksuffix == " %"


def test_passed_and_failed_trials_differ_in_symbol() -> None:
    symbols = {
        int(number): trace.marker.symbol
        for trace in search_chart(trials(), 0.005).data
        for number in trace.customdata
    }
    assert symbols[1] == symbols[2]  # both lose more than the target allows
    assert len({symbols[i] for i in (0, 1, 3, 4)}) == 4


def test_a_smaller_target_fails_more_trials() -> None:
    names = {trace.name for trace in search_chart(trials(), 0.0001).data}
    assert "within the target" not in names


def test_without_metric_the_loss_is_drawn_against_the_target() -> None:
    figure = search_chart(trials(metric=False), 0.005)
    assert points(figure)[1] == pytest.approx(0.08)
    assert figure.layout.shapes[0].y0 == pytest.approx(0.005)


def test_empty_search_says_what_to_do() -> None:
    figure = search_chart(trials().iloc[:0], 0.005)
    assert any("press Start" in note.text for note in figure.layout.annotations)


@pytest.mark.parametrize(
    ("bracket", "sizes"), [((1, 3), [1, 2, 2]), ((0, 5), [5]), ((2, 2), [2, 3])]
)
def test_bracket_parts(bracket: tuple[int, int], sizes: list[int]) -> None:
    ranking = ["a", "b", "c", "d", "e"]
    figure = bracket_strip(ranking, bracket)
    assert list(figure.data[0].customdata) == ranking
    assert [len(trace.x) for trace in figure.data[1:]] == sizes
    assert [name for trace in figure.data[1:] for name in trace.customdata] == ranking
    assert {shape.x0 for shape in figure.layout.shapes} == {edge - 0.5 for edge in bracket}


def test_bracket_without_ranking() -> None:
    assert "not ranked" in bracket_strip((), None).layout.annotations[0].text
