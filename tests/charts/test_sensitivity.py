"""The sensitivity charts show exactly the table's figures, in the table's order."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from workbench.charts import QUANTITIES, sensitivity_chart, stage_strip, worst_chart
from workbench.charts.sensitivity import below_threshold, display_order


def test_one_bar_a_layer_in_execution_order(layers: pd.DataFrame) -> None:
    bars = sensitivity_chart(layers).data[0]
    assert list(bars.customdata) == list(layers["name"])
    assert list(bars.x) == list(range(len(layers)))
    measured = [0, 1, 2, 3, 4, 6]
    assert [bars.y[i] for i in measured] == pytest.approx([1e-4, 2e-2, 3e-5, 0.3, 1e-3, 5e-4])


def test_a_layer_without_a_value_can_still_be_clicked(layers: pd.DataFrame) -> None:
    figure = sensitivity_chart(layers)
    floor = 10 ** figure.layout.yaxis.range[0]
    assert floor < figure.data[0].y[5] < 3e-5
    assert "Analyse" in figure.data[0].hovertext[5]


def test_sorted_order_is_worst_first_with_unmeasured_last(layers: pd.DataFrame) -> None:
    names = list(sensitivity_chart(layers, order="sorted").data[0].customdata)
    worst = [3, 1, 4, 6, 0, 2, 5, 7]
    assert names == [layers["name"][i] for i in worst]
    assert list(display_order(layers, "cosine", "sorted")) == worst


@pytest.mark.parametrize(("quantity", "where"), [("error", 0.01), ("cosine", 0.99)])
def test_threshold_is_an_editable_horizontal_line(
    layers: pd.DataFrame, quantity: str, where: float
) -> None:
    shape = sensitivity_chart(layers, quantity=quantity, threshold=0.99).layout.shapes[0]
    assert shape.editable
    assert shape.y0 == shape.y1 == pytest.approx(where)


@pytest.mark.parametrize("quantity", ["sqnr", "weight_range", "macs", "parameters"])
def test_other_quantities_have_no_threshold(layers: pd.DataFrame, quantity: str) -> None:
    assert not sensitivity_chart(layers, quantity=quantity).layout.shapes


def test_states_differ_in_colour_and_those_not_quantised_in_pattern(layers: pd.DataFrame) -> None:
    marker = sensitivity_chart(layers, threshold=0.99).data[0].marker
    quantised, skipped, worse, ineligible = (marker.color[i] for i in (0, 1, 3, 7))
    assert len({quantised, skipped, worse, ineligible}) == 4
    assert marker.pattern.shape[0] == ""
    assert marker.pattern.shape[1] != marker.pattern.shape[7]


def test_legend_names_only_states_that_occur(layers: pd.DataFrame) -> None:
    quantised = layers[layers["state"] == "quantised"].reset_index(drop=True)
    figure = sensitivity_chart(quantised, threshold=0.0)
    assert [trace.name for trace in figure.data if trace.showlegend is not False] == ["quantised"]


def test_selected_layers_are_outlined(layers: pd.DataFrame) -> None:
    chosen = [layers["name"][2]]
    widths = sensitivity_chart(layers, selected=chosen).data[0].marker.line.width
    assert [i for i, width in enumerate(widths) if width] == [2]


def test_below_threshold_counts_quantised_measured_layers_only(layers: pd.DataFrame) -> None:
    assert below_threshold(layers, 0.99) == [layers["name"][3]]  # row 1 is worse but stays float
    assert below_threshold(layers, 0.9991) == [layers["name"][3], layers["name"][4]]


@pytest.mark.parametrize("quantity", list(QUANTITIES))
@pytest.mark.parametrize("dark", [False, True])
def test_every_quantity_draws_with_nothing_measured(
    layers: pd.DataFrame, quantity: str, dark: bool
) -> None:
    empty = layers.assign(
        cosine=math.nan,
        error=math.nan,
        sqnr=math.nan,
        accumulated_error=math.nan,
        weight_range=math.nan,
    )
    figure = sensitivity_chart(empty, quantity=quantity, dark=dark)
    assert len(figure.data[0].x) == len(layers)
    assert np.isfinite(figure.layout.yaxis.range).all()


def test_zoom_is_kept_across_edits_but_not_across_quantities(layers: pd.DataFrame) -> None:
    first = sensitivity_chart(layers)
    edited = sensitivity_chart(layers.assign(state="skipped"))
    assert first.layout.uirevision == edited.layout.uirevision
    assert first.layout.uirevision != sensitivity_chart(layers, quantity="macs").layout.uirevision


def test_stage_strip_has_every_layer_once(layers: pd.DataFrame) -> None:
    heat = stage_strip(layers).data[0]
    names = [name for row in heat.customdata for name in row if name]
    assert names == list(layers["name"])
    assert list(heat.y) == ["stage0", "stage1"]
    assert heat.z[0][3] == pytest.approx(math.log10(0.3))


def test_worst_chart_shows_the_k_worst(layers: pd.DataFrame) -> None:
    bars = worst_chart(layers, k=3).data[0]
    assert list(bars.customdata) == [layers["name"][i] for i in (3, 1, 4)]
    assert list(bars.x) == pytest.approx([0.3, 2e-2, 1e-3])


def test_no_layers(layers: pd.DataFrame) -> None:
    figure = sensitivity_chart(layers.iloc[:0])
    assert "No layers" in figure.layout.annotations[-1].text
