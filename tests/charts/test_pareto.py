"""The Pareto chart: which points no other beats, by comparing each with each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.charts import bracket_strip, pareto_chart
from workbench.charts.pareto import front
from workbench.studio.state import ExportedFile

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


@given(POINTS)
def test_the_front_is_what_no_other_point_beats(points: list[tuple[int, int]]) -> None:
    costs = np.array([cost for cost, _ in points], dtype=float)
    metrics = np.array([metric for _, metric in points], dtype=float)
    beaten_by_none = {
        (cost, metric)
        for cost, metric in points
        if not any(
            c <= cost and m >= metric and (c, m) != (cost, metric) for c, m in points
        )
    }  # fmt: skip
    found = front(costs, metrics)
    assert {points[i] for i in found} == beaten_by_none
    assert len(found) == len(beaten_by_none)
    assert costs[found].tolist() == sorted(costs[found].tolist())


def trials(*rows: tuple[float, float, float]) -> pd.DataFrame:
    """Rows of (metric, size, share)."""
    return pd.DataFrame(
        {
            "trial": range(len(rows)),
            "phase": "search",
            "kind": "probe",
            "metric": [metric for metric, _, _ in rows],
            "loss": [0.98 - metric for metric, _, _ in rows],
            "satisfied": True,
            "n_float": 2,
            "size": [size for _, size, _ in rows],
            "bops": [2 * size for _, size, _ in rows],
            "share": [share for _, _, share in rows],
        }
    )


def line(figure: Any) -> list[tuple[float, float]]:
    (trace,) = [trace for trace in figure.data if trace.mode == "lines"]
    return list(zip(trace.x, trace.y, strict=True))


@pytest.mark.parametrize(("cost", "factor"), [("size", 1.0), ("bops", 2.0)])
def test_trials_stand_at_their_cost_and_the_best_are_joined(cost: str, factor: float) -> None:
    rows = [(0.90, 100.0, 1.0), (0.97, 200.0, 1.0), (0.95, 300.0, 1.0), (0.98, 400.0, 1.0)]
    figure = pareto_chart(trials(*rows), 0.02, cost=cost, metric_name="top1", metric_float=0.98)
    expected = [(factor * rows[i][1], rows[i][0]) for i in (0, 1, 3)]
    assert line(figure) == [(x, pytest.approx(100 * y)) for x, y in expected]
    assert figure.layout.yaxis.ticksuffix == " %"
    points = {
        name: (x, y)
        for trace in figure.data
        if trace.mode == "markers"
        for name, x, y in zip(trace.customdata, trace.x, trace.y, strict=True)
    }
    assert points == {
        str(i): (factor * row[1], pytest.approx(100 * row[0])) for i, row in enumerate(rows)
    }
    assert {trace.name: len(trace.x) for trace in figure.data if trace.mode == "markers"} == {
        "within the target": 2,
        "loses too much": 2,
    }
    assert figure.layout.shapes[0].y0 == pytest.approx(96)


def test_an_estimate_is_hollow_and_never_on_the_line() -> None:
    rows = [(0.90, 100.0, 1.0), (0.99, 150.0, 0.2), (0.97, 200.0, 1.0), (math.nan, 50.0, 1.0)]
    figure = pareto_chart(trials(*rows), 0.5, metric_float=0.98)
    assert line(figure) == [(100.0, 0.90), (200.0, 0.97)]
    (markers,) = [trace for trace in figure.data if trace.mode == "markers"]
    assert list(markers.marker.symbol) == ["circle", "circle-open", "circle"]


def test_latency_is_that_of_measured_files() -> None:
    files = (
        ExportedFile("float", "a", 4, 0.98, 4.0, 0.1, 1.0),
        ExportedFile("qdq", "b", 1, 0.97, 1.5, 0.1, 4.0),
        ExportedFile("deploy", "c", 1, None, None, None, 4.0),
    )
    figure = pareto_chart(
        trials((0.9, 1.0, 1.0)), 0.02, cost="latency", files=files, metric_float=0.98
    )
    assert line(figure) == [(1.5, 0.97), (4.0, 0.98)]
    empty = pareto_chart(trials(), 0.02, cost="latency")
    assert "Export" in empty.layout.annotations[0].text


def test_pinned_layers_stand_out_in_the_strip() -> None:
    ranking = ("a", "b", "c", "d", "e")
    figure = bracket_strip(ranking, (1, 3), pins={"b": True, "e": False, "gone": True})
    names = {trace.marker.pattern.shape: list(trace.customdata) for trace in figure.data[1:]}
    assert names == {"/": ["a"], "\\": ["c"], "": ["d"], "+": ["b"], "|": ["e"]}


def test_a_best_trial_that_is_no_cut_of_the_ranking_is_drawn_itself() -> None:
    figure = bracket_strip(("a", "b", "c", "d"), (1, 3), best=("b", "d"))
    assert [list(trace.customdata) for trace in figure.data[1:]] == [["b", "d"], ["a", "c"]]
    assert not figure.layout.shapes
    cut = bracket_strip(("a", "b", "c", "d"), (1, 3), best=("b", "a"))
    assert len(cut.layout.shapes) == 2
