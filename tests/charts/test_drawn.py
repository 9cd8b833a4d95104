"""The table and the CSV of a chart: the figures that went in, whatever the chart draws for them."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from workbench.charts import module_chart, sensitivity_chart, stage_strip, worst_chart
from workbench.charts.drawn import figure_csv, figure_table


def rows(figure: go.Figure) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(figure_csv(figure))))


@pytest.fixture
def layers() -> pd.DataFrame:
    cosine = [0.9, 1.0, 0.999999, math.nan]
    names = ["a.conv", "=HYPERLINK(1)", 'with "quotes", and comma', "never"]
    return pd.DataFrame(
        {
            "name": names, "type": "Conv2d", "shape": "4×4", "eligible": True, "reason": "",
            "cosine": cosine, "error": [1 - c for c in cosine], "sqnr": 20.0,
            "accumulated_error": math.nan, "parameters": [10, 20, 30, 40],
            "macs": [100, 200, 300, 400], "quant_enable": True, "state": "quantised",
            "weight_range": 1.0, "pin": "",
        }
    )  # fmt: skip


def test_bars_give_what_was_measured_and_not_the_stub_that_is_drawn(layers: pd.DataFrame) -> None:
    found = rows(sensitivity_chart(layers, quantity="error"))
    assert [row["name"] for row in found] == [
        "a.conv", "'=HYPERLINK(1)", 'with "quotes", and comma', "never",
    ]  # fmt: skip
    column = next(key for key in found[0] if "cos" in key)
    values = [row[column] for row in found]
    assert float(values[0]) == pytest.approx(0.1, rel=1e-12)
    assert float(values[1]) == 0.0 and values[3] == "", "exact, and not measured"
    assert float(values[2]) == pytest.approx(1e-6, rel=1e-9)


def test_bars_that_lie_on_their_side_and_start_elsewhere(layers: pd.DataFrame) -> None:
    found = rows(worst_chart(layers, quantity="cosine"))
    column = next(key for key in found[0] if "cos" in key)
    assert {row["name"]: float(row[column]) for row in found} == pytest.approx(
        {"a.conv": 0.9, "'=HYPERLINK(1)": 1.0, 'with "quotes", and comma': 0.999999}
    )


def test_areas_and_cells(layers: pd.DataFrame) -> None:
    table = figure_table(module_chart(layers, value="parameters", model_name="net"))
    sizes = dict(zip(table["name"], table["value"], strict=True))
    assert sizes["/"] == 100 and sizes["a.conv"] == 10
    cells = figure_table(stage_strip(layers, quantity="macs"))
    assert set(cells["name"]) == set(layers["name"])
    assert sorted(cells.select_dtypes(float).to_numpy()[:, -1]) == pytest.approx(
        sorted(np.log10(layers["macs"])) if "log" in str(cells.columns[-1]) else
        sorted(layers["macs"])
    )  # fmt: skip


def test_several_series_and_axes() -> None:
    figure = go.Figure()
    figure.add_scatter(x=[1, 2], y=[0.5, None], name="loss")
    figure.add_scatter(x=[1], y=[7.0], name="rate", yaxis="y2")
    figure.add_bar(x=[None], y=[None], name="a legend's entry")
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="loss")
    assert rows(figure) == [
        {"series": "loss", "step": "1", "y": "0.5"},
        {"series": "loss", "step": "2", "y": ""},
        {"series": "rate", "step": "1", "y": "7.0"},
    ]


def test_nothing_drawn_is_an_empty_file() -> None:
    assert figure_csv(go.Figure()).strip() == ""
