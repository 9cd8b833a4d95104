"""Charts of pruning against figures worked out by hand."""

import numpy as np
import pytest

from workbench.charts import channel_plan_chart, channel_sensitivity_chart, sparse_weight_chart

NAN = float("nan")


@pytest.mark.parametrize("dark", [False, True])
def test_channels_of_a_layer_go_from_the_most_sensitive_to_the_least(dark):
    figure = channel_sensitivity_chart(
        {"stage.a.conv": [1.0, 100.0, 10.0], "stage.b.conv": [NAN, 0.0]}, dark=dark
    )
    (heat,) = figure.data
    assert list(heat.z[0]) == pytest.approx([0.0, -1.0, -2.0])
    assert [int(c) for c in heat.customdata[0, :, 0]] == [1, 2, 0]
    assert list(heat.customdata[0, :, 1]) == [100.0, 10.0, 1.0]
    # A channel without a value is last, one without an effect at the end of the scale.
    assert heat.z[1][0] == -3.0 and list(heat.z[1][1:]) == [None, None]
    assert [int(c) for c in heat.customdata[1, :2, 0]] == [1, 0]
    assert heat.zmin == -3.0 and heat.colorbar.ticktext == ("≤ 0.001", "0.01", "0.1", "1")
    assert list(figure.layout.yaxis.ticktext) == ["a", "b"]


def test_crosses_stand_where_the_channel_stands_after_sorting():
    figure = channel_sensitivity_chart(
        {"a": [1.0, 3.0, 2.0], "b": [1.0, 2.0, 3.0]}, {"a": (0, 2), "other": (1,)}
    )
    crosses = figure.data[1]
    assert list(zip(crosses.x, crosses.y, strict=True)) == [(1, "a"), (2, "a")]


def test_names_that_look_like_numbers_are_names():
    heat = channel_sensitivity_chart({"2.0": [1.0], "2.1": [1.0], "10": [1.0]})
    assert heat.layout.yaxis.type == "category"
    assert channel_plan_chart({"2.0": 1, "10": 1}, {}).layout.xaxis.type == "category"


def test_a_number_means_the_least_sensitive_channels():
    crosses = channel_sensitivity_chart({"a": [4.0, NAN, 3.0, 1.0, 2.0]}, {"a": 2}).data[1]
    assert list(crosses.x) == [2, 3], "4 and 3 stay, and what has no value is no candidate"
    stay, go = channel_plan_chart({"a": 5, "b": 4}, {"a": 2}).data
    assert list(stay.y) == [3, 4] and list(go.y) == [2, 0]


def test_strokes_in_place_of_crosses_where_channels_are_many():
    gone = {"a": [*range(100, 300), 0], "b": range(40)}
    figure = channel_sensitivity_chart({"a": range(300, 0, -1), "b": range(40)}, gone)
    heat, strokes = figure.data
    assert heat.xgap == 0 and strokes.mode == "lines"
    assert list(strokes.x) == [-0.5, 0.5, None, 99.5, 299.5, None, -0.5, 39.5, None]
    assert list(strokes.y) == ["a", "a", None, "a", "a", None, "b", "b", None]


@pytest.mark.parametrize(("least", "low", "ticks"), [(50.0, -1.0, 2), (2.0, np.log10(0.02), 2)])
def test_colours_begin_at_the_least_sensitive_channel(least, low, ticks):
    heat = channel_sensitivity_chart({"a": [100.0, least]}).data[0]
    assert heat.zmin == pytest.approx(low) and len(heat.colorbar.tickvals) == ticks


def test_sensitivities_of_zero_are_no_error():
    assert list(channel_sensitivity_chart({"a": [0.0, 0.0]}).data[0].z[0]) == [-3.0, -3.0]


def test_a_plan_stacks_what_goes_on_what_stays():
    figure = channel_plan_chart(
        {"a": 8, "b": 16},
        {"a": (1, 5)},
        macs=(2_000_000, 500_000),
        parameters=(1000, 400),
        notes={"b": "it has < 2 channels"},
    )
    stay, go = figure.data
    assert list(stay.y) == [6, 16] and list(go.y) == [2, 0]
    assert figure.layout.barmode == "stack"
    # Not by colour alone.
    assert stay.marker.pattern.shape != go.marker.pattern.shape
    assert stay.hovertext[0] == "a<br>keeps 6 of 8"
    assert stay.hovertext[1].endswith("<br>it has &lt; 2 channels")
    (said,) = figure.layout.annotations
    assert (
        said.text == "multiply-accumulates 2.00 M → 500 k (25 %) · parameters 1.00 k → 400 (40 %)"
    )
    assert not channel_plan_chart({"a": 8}, {}).layout.annotations


def test_many_layers_are_not_named():
    names = {f"layer{i}": 4 for i in range(61)}
    assert channel_plan_chart(names, {}).layout.xaxis.showticklabels is False


def test_a_sparse_weight_leaves_its_zeros_blank():
    before = np.array([[1.0, -2.0, 3.0, -4.0, 5.0, 6.0]])
    after = before * [0, 0, 1, 1, 1, 1]
    figure = sparse_weight_chart(before, after, name="fc")
    dense, sparse = figure.data
    assert list(dense.z[0]) == [1, -2, 3, -4, 5, 6]
    assert list(sparse.z[0][:2]) == [None, None] and list(sparse.z[0][2:]) == [3, -4, 5, 6]
    assert (dense.zmin, sparse.zmax) == (-6.0, 6.0)
    assert [shape.x0 for shape in figure.layout.shapes] == [3.5, 3.5]
    assert [a.text for a in figure.layout.annotations] == [
        "fc before: 100 % are not 0",
        "fc after: 67 % are not 0",
    ]


@pytest.mark.parametrize("shapes", [((4,), (4,)), ((2, 4), (2, 5))])
def test_weights_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match="twice the same"):
        sparse_weight_chart(*(np.ones(shape) for shape in shapes))


def test_nothing_to_show_is_said():
    assert "appear here" in channel_sensitivity_chart({}).layout.annotations[0].text
    assert "appears here" in channel_plan_chart({}, {}).layout.annotations[0].text
