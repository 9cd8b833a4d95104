"""Histogram and module charts against hand-computed figures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from workbench.charts import layer_histogram_chart, module_chart


def histogram(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "name": "conv",
        "activation_edges": np.array([-1.0, 0.0, 1.0, 2.0]),
        "activation_counts": np.array([3.0, 0.0, 5.0]),
        "activation_low": -0.5,
        "activation_high": 1.0,
        "activation_scale": 0.1,
        "weight_edges": np.array([-1.0, 0.0, 1.0]),
        "weight_counts": np.array([2.0, 4.0]),
        "weight_scales": np.array([0.5, 0.25]),
    }
    return SimpleNamespace(**{**values, **changes})


def test_bars_have_the_bins_of_the_histogram() -> None:
    inputs, grid, weights = layer_histogram_chart(histogram()).data
    assert list(inputs.x) == [-0.5, 0.5, 1.5]
    assert inputs.y[0] == 3
    assert np.isnan(inputs.y[1])  # an empty bin has no bar on a log axis
    assert list(weights.y) == [2, 4]
    assert list(grid.x) == pytest.approx(list(-0.5 + 0.1 * np.arange(16)))


def test_clip_bounds_are_lines_and_what_is_clipped_is_shaded() -> None:
    shapes = layer_histogram_chart(histogram()).layout.shapes
    assert [s.x0 for s in shapes if s.type == "line"] == [-0.5, 1.0]
    assert [(s.x0, s.x1) for s in shapes if s.type == "rect"] == [(-1.0, -0.5), (1.0, 2.0)]


def test_a_grid_too_fine_to_see_is_only_said() -> None:
    figure = layer_histogram_chart(histogram(activation_scale=1.5 / 255))
    assert len(figure.data) == 2
    assert "256" in figure.layout.xaxis.title.text


def test_a_layer_without_weights_has_one_plot() -> None:
    empty = np.empty(0)
    figure = layer_histogram_chart(
        histogram(weight_edges=empty, weight_counts=empty, weight_scales=empty)
    )
    assert figure.layout.xaxis.domain == (0, 1)
    assert not figure.layout.xaxis2.visible


@pytest.mark.parametrize("kind", ["treemap", "icicle"])
def test_modules_add_up(layers: pd.DataFrame, kind: Any) -> None:
    trace = module_chart(layers, kind=kind).data[0]
    values = dict(zip(trace.ids, trace.values, strict=True))
    assert values["/"] == layers["parameters"].sum()
    assert values["stage0"] == layers["parameters"][:4].sum()
    parents = dict(zip(trace.ids, trace.parents, strict=True))
    assert parents["stage0.block1.conv"] == "stage0"  # block1 holds nothing else
    assert "stage0.block1" not in parents
    assert parents["stage0"] == "/"
    labels = dict(zip(trace.ids, trace.labels, strict=True))
    assert labels["stage0.block1.conv"] == "block1.conv"
