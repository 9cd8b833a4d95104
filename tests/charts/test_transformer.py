"""Charts of transformer layers against figures worked out by hand."""

import numpy as np
import pytest

from workbench.charts import outlier_chart, smoothing_chart, weight_error_chart
from workbench.engine.analysis.module_layers import ChannelProfile, WeightError

ERRORS = {
    "minmax": (WeightError("layers.0.q", "–/int4", 0.2), WeightError("layers.1.q", "–/int4", 0.1)),
    "gptq": (WeightError("layers.1.q", "–/int4", 0.0),),
}


@pytest.mark.parametrize("dark", [False, True])
def test_errors_are_one_series_a_configuration_in_the_order_of_layers(dark):
    figure = weight_error_chart(ERRORS, dark=dark)
    first, second = figure.data
    assert (first.name, second.name) == ("minmax", "gptq")
    assert list(first.y) == [20.0, 10.0] and list(first.x) == ["layers.0.q", "layers.1.q"]
    assert list(figure.layout.xaxis.categoryarray) == ["layers.0.q", "layers.1.q"]
    assert list(figure.layout.xaxis.ticktext) == ["0.q", "1.q"]
    assert figure.layout.yaxis.type == "log" and second.y[0] > 0
    assert first.customdata[0][1] == pytest.approx(13.979, abs=1e-3)
    assert first.marker.symbol != second.marker.symbol


def test_outliers_in_times_of_the_median():
    profiles = [
        ChannelProfile("a", np.array([1.0, 2.0, 3.0]), np.ones(3), np.array([1.0, 1.0, 3.0])),
        ChannelProfile("b", np.array([2.0, 2.0, 2.0, 200.0]), np.ones(4)),
    ]
    heat = outlier_chart(profiles).data[0]
    assert list(heat.y) == ["a", "b"]
    assert heat.customdata[0].tolist() == [0.5, 1.0, 1.5, None]
    assert heat.customdata[1][3] == 100 and heat.z[1][3] == pytest.approx(2.0)
    assert list(outlier_chart(profiles, after=True).data[0].customdata[0][:3]) == [1.0, 2.0, 1.0]


def test_names_that_look_like_numbers_are_names():
    figure = weight_error_chart({"int8": (WeightError("2.0", "–/int8", 0.1),)})
    assert figure.layout.xaxis.type == "category"
    profile = ChannelProfile("2.0", np.ones(2), np.ones(2))
    assert outlier_chart([profile]).layout.yaxis.type == "category"


def test_before_and_after_smoothing():
    profile = ChannelProfile("a", np.array([1.0, 8.0]), np.array([0.5, 0.5]), np.array([1.0, 4.0]))
    before, after, weight_before, weight_after = smoothing_chart(profile).data
    assert list(before.y) == [1.0, 8.0] and list(after.y) == [1.0, 2.0]
    assert list(weight_before.y) == [0.5, 0.5] and list(weight_after.y) == [0.5, 2.0]
    plain = smoothing_chart(ChannelProfile("a", np.ones(2), np.ones(2)))
    assert [trace.name for trace in plain.data] == ["before", "before"]


def test_nothing_to_show_is_said():
    assert "appear here" in weight_error_chart({}).layout.annotations[0].text
    assert "appear here" in outlier_chart([]).layout.annotations[0].text
