"""Charts and table of one layer against figures worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from workbench.charts import comparison_frame, error_chart, output_scatter, weight_range_chart
from workbench.engine.analysis.compare import Alternative
from workbench.engine.analysis.histograms import LayerHistogram
from workbench.engine.analysis.profile import LayerProfile


def profile(**changes: Any) -> LayerProfile:
    values: dict[str, Any] = {
        "histogram": LayerHistogram(
            "conv", np.zeros(2), np.zeros(1, np.int64), 0.0, 1.0, 0.1, np.zeros(2),
            np.zeros(1, np.int64), np.zeros(1),
        ),
        "channel_low": np.array([-1.0, -0.5]),
        "channel_high": np.array([0.25, 2.0]),
        "channel_scales": np.array([0.01, 0.02]),
        "weight_bits": 8,
        "error_edges": np.array([-1.0, -0.5, 0.0, 0.5, 1.0]),
        "error_counts": np.array([1, 0, 2, 1]),
        "sample_float": np.array([-1.0, 3.0]),
        "sample_quantized": np.array([-1.5, 3.25]),
    }  # fmt: skip
    return LayerProfile(**{**values, **changes})


@pytest.mark.parametrize("dark", [False, True])
def test_a_bar_spans_a_channel_and_marks_stand_at_the_ends_of_its_range(dark: bool) -> None:
    bars, upper, lower = weight_range_chart(profile(), dark=dark).data
    assert list(bars.base) == [-1.0, -0.5]
    assert list(bars.y) == [1.25, 2.5]
    assert list(upper.y) == pytest.approx([1.27, 2.54])
    assert list(lower.y) == pytest.approx([-1.28, -2.56])
    assert bars.customdata[1][3] == pytest.approx(100)  # 2.0 / 0.02 is code 100


def test_without_weights_it_says_so() -> None:
    empty = np.zeros(0)
    figure = weight_range_chart(
        profile(channel_low=empty, channel_high=empty, channel_scales=empty)
    )
    assert not figure.data
    assert any("no weights" in note.text for note in figure.layout.annotations)


def test_errors_are_counted_and_summed_up() -> None:
    figure = error_chart(profile())
    (bars,) = figure.data
    assert list(bars.x) == [-0.75, -0.25, 0.25, 0.75]
    assert np.isnan(bars.y[1])
    mean = (-0.75 + 2 * 0.25 + 0.75) / 4
    assert f"{mean:g}" in figure.layout.xaxis.title.text


def test_the_scatter_has_the_pairs_and_the_line_of_equality() -> None:
    line, points = output_scatter(profile()).data
    assert list(line.x) == list(line.y) == [-1.5, 3.25]
    assert (list(points.x), list(points.y)) == ([-1.0, 3.0], [-1.5, 3.25])
    assert list(points.customdata) == [-0.5, 0.25]


def alternative(label: str, error: float, **changes: Any) -> Alternative:
    values: dict[str, Any] = {
        "kind": "activation", "algorithm": "ifmr", "label": label, "settings": {"act_algo": "ifmr"},
        "scale": 0.5, "scale_max": 0.5, "offset": -3, "cosine": 1 - error, "error": error,
        "sqnr_db": 30.0, "seconds": 0.0123, "in_use": False,
    }  # fmt: skip
    return Alternative(**{**values, **changes})


def test_the_table_in_words() -> None:
    found = [
        alternative("IFMR", 1e-3),
        alternative("HFMG", 1e-4, sqnr_db=math.inf),
        alternative("IFMR, 16 bits", 1e-9, settings={"act_bits": 16}),
        alternative("min–max", 1e-5, settings={}),
        alternative("ARQ", 1e-2, kind="weight", scale_max=0.75, seconds=2.0),
        alternative("ADA", math.nan, kind="weight", trouble="a <bad> weight", sqnr_db=math.nan),
    ]
    frame = comparison_frame(found, [True, *[False] * 5])
    assert list(frame["state"]) == [
        "● in use", "★ smallest error", "", "baseline", "★ smallest error", "✕ a <bad> weight",
    ]  # fmt: skip
    assert list(frame["scale"]) == ["0.5", "0.5", "0.5", "0.5", "0.5 … 0.75", "—"]
    assert list(frame["sqnr"])[:2] == ["30.0 dB", "exact"]
    assert list(frame["seconds"])[3:5] == ["12 ms", "2.0 s"]
    assert frame["error"].iloc[0] == "1.00e-03"
    assert frame["error"].iloc[5] == "—"
