from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from workbench.charts import clip_chart, loss_chart, metric_chart, rate_chart
from workbench.charts.training import smoothed, thinned


def make_steps(count: int = 40) -> pd.DataFrame:
    step = np.arange(1, count + 1)
    return pd.DataFrame(
        {
            "step": step,
            "steps": count,
            "epoch": (step - 1) // 10,
            "loss": 2.0 / step,
            "learning_rate": 1e-3 * (1 - step / count),
        }
    )


def notes(figure: object) -> list[str]:
    return [str(a.text) for a in figure.layout.annotations]  # type: ignore[attr-defined]


def test_loss_as_measured_and_smoothed_on_a_log_axis() -> None:
    steps = make_steps()
    figure = loss_chart(steps, total=80)
    thin, bold = figure.data
    assert list(thin.x) == list(bold.x) == steps["step"].tolist()
    assert list(thin.y) == pytest.approx(steps["loss"].tolist())
    assert figure.layout.yaxis.type == "log", "2 down to 0.05"
    assert figure.layout.xaxis.range[1] >= 80, "what is still to come has its place"
    assert len(figure.layout.shapes) == 3, "a line where each later epoch begins"
    flat = steps.assign(loss=1.0 + 0.1 / steps["step"])
    assert loss_chart(flat).layout.yaxis.type is None


def test_the_smoothed_line_is_an_unbiased_average() -> None:
    assert smoothed(np.full(50, 3.0)) == pytest.approx(np.full(50, 3.0))
    values = np.array([4.0, 0.0, 8.0, math.nan, 2.0])
    weight = 1 / 2  # a share of 0.4 of five points is two
    expected, total, norm = [], 0.0, 0.0
    for value in values:
        if not math.isnan(value):
            total = (1 - weight) * total + weight * value
            norm = (1 - weight) * norm + weight
        expected.append(total / norm)
    assert smoothed(values, share=0.4) == pytest.approx(expected)


def test_long_trainings_are_thinned_and_end_where_they_end() -> None:
    steps = make_steps(5000)
    shown = thinned(steps)
    assert len(shown) <= 800
    assert shown["step"].iloc[0] == 1
    assert shown["step"].iloc[-1] == 5000
    assert len(loss_chart(steps).data[1].x) == len(shown)


def test_metric_with_float_and_the_best_marked() -> None:
    evaluations = pd.DataFrame(
        {"step": [10, 20, 30], "metric": [0.9, 0.97, 0.95], "best": [True, True, False]}
    )
    figure = metric_chart(
        evaluations, metric_name="top1", metric_float=0.98, metric_before=0.894, total=40
    )
    (line,) = figure.data
    assert list(line.marker.symbol) == ["circle", "star", "circle"]
    assert figure.layout.yaxis.title.text == "top-1"
    assert figure.layout.yaxis.ticksuffix == " %"
    low, high = figure.layout.yaxis.range
    assert low < 89.4 < 98 < high < 100
    assert notes(figure) == ["float<br>98.0 %", "before training<br>89.4 %"]
    for before, sides in ((0.894, ["bottom", "top"]), (0.98, ["bottom", "top"])):
        close = metric_chart(evaluations, metric_float=0.98, metric_before=before)
        assert [note.yanchor for note in close.layout.annotations] == sides
    better = metric_chart(evaluations, metric_float=0.98, metric_before=0.985)
    assert [note.yanchor for note in better.layout.annotations] == ["top", "bottom"]
    psnr = metric_chart(evaluations.assign(metric=[20.0, 21.0, 22.0]), metric_name="psnr")
    assert not psnr.layout.yaxis.ticksuffix


def test_bounds_of_the_chosen_layers() -> None:
    clips = pd.DataFrame(
        [(s, name, -s / 10 * k, s / 5 * k) for s in (1, 2, 3) for k, name in ((1, "a"), (2, "b"))],
        columns=["step", "layer", "low", "high"],
    )
    figure = clip_chart(clips, ["b"])
    low, high = figure.data
    assert list(low.y) == pytest.approx([-0.2, -0.4, -0.6])
    assert list(high.y) == pytest.approx([0.4, 0.8, 1.2])
    assert (low.fill, high.fill) == (None, "tonexty")
    both = clip_chart(clips, ["a", "b"])
    assert len({trace.line.dash for trace in both.data}) == 2, "told apart without colour"
    assert len(clip_chart(clips, ["a", "b", "c", "a", "b"]).data) <= 8
    assert "Choose layers" in notes(clip_chart(clips, []))[0]


def test_the_learning_rate() -> None:
    figure = rate_chart(make_steps())
    assert list(figure.data[0].y) == pytest.approx(make_steps()["learning_rate"].tolist())
    assert "appears here" in notes(rate_chart(make_steps().assign(learning_rate=math.nan)))[0]


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_measured_yet(dark: bool) -> None:
    steps, evaluations = make_steps(0), pd.DataFrame({"step": [], "metric": [], "best": []})
    clips = pd.DataFrame({"step": [], "layer": [], "low": [], "high": []})
    for figure in (
        loss_chart(steps, dark=dark),
        metric_chart(evaluations, dark=dark),
        rate_chart(steps, dark=dark),
        clip_chart(clips, [], dark=dark),
    ):
        assert len(notes(figure)) == 1
        assert figure.layout.yaxis.showticklabels is False
    only = metric_chart(evaluations, metric_name="top1", metric_float=0.98)
    assert notes(only) == ["float<br>98.0 %"]
