from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go

from workbench.charts import sensitivity_chart
from workbench.studio.session import Session
from workbench.widgets import SensitivityChart
from workbench.widgets.figures import live, replace


def same(shown: go.Figure, wanted: go.Figure) -> None:
    wanted.layout.update(paper_bgcolor="#ffffff", autosize=True)  # of a notebook
    assert plain(shown) == plain(wanted)


def plain(figure: go.Figure) -> Any:
    """As JSON, without plotly's own marks and without attributes that were taken away."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items() if v is not None and k != "uid"}
        return [clean(item) for item in value] if isinstance(value, list) else value

    return clean(json.loads(go.Figure(figure.to_dict()).to_json()))


def test_the_live_figure_equals_a_fresh_one_after_every_edit(session: Session) -> None:
    chart = SensitivityChart(session)
    for index in (0, 5, 0, 7, 2):
        session.toggle(session.layers["name"][index])
        same(chart.figure, sensitivity_chart(session.layers))
    for index in range(11):
        if session.layers["quant_enable"][index]:
            session.toggle(session.layers["name"][index])
    same(chart.figure, sensitivity_chart(session.layers))
    chart.quantity.value = "macs"
    chart.order.value = "sorted"
    same(chart.figure, sensitivity_chart(session.layers, quantity="macs", order="sorted"))
    chart.selected = session.layers["name"][4]
    wanted = sensitivity_chart(
        session.layers, quantity="macs", order="sorted", selected=[chart.selected]
    )
    same(chart.figure, wanted)


def test_zoom_survives_an_edit() -> None:
    before = go.Figure([{"type": "bar", "y": [1, 2]}], {"xaxis": {"range": [0, 9]}})
    after = go.Figure([{"type": "bar", "y": [1, 3]}], {"xaxis": {"range": [0, 9]}})
    shown = live(before)
    shown.layout.xaxis.range = [1, 2]
    replace(shown, before, after)
    assert list(shown.data[0].y) == [1, 3]
    assert list(shown.layout.xaxis.range) == [1, 2]


def test_only_what_differs_is_sent(session: Session, monkeypatch: Any) -> None:
    chart = SensitivityChart(session)
    sent: list[Any] = []
    figure = chart.figure
    monkeypatch.setattr(figure, "_send_restyle_msg", lambda data, **_: sent.append(data))
    monkeypatch.setattr(figure, "_send_update_msg", lambda data, *_, **__: sent.append(data))
    session.toggle(session.layers["name"][3])
    session.toggle(session.layers["name"][3])
    keys = {key.split(".")[0] for data in sent for key in (data or {})}
    assert keys <= {"marker", "hovertext"}


def test_a_click_toggles_its_layer_in_the_order_shown(session: Session, points: Any) -> None:
    chart = SensitivityChart(session)
    chart._clicked(chart.figure.data[0], points(4))
    assert list(session.layers.index[session.layers["state"] == "skipped"]) == [4]
    chart._clicked(chart.figure.data[0], points(4))
    assert session.layers["quant_enable"].sum() == 11
    chart.order.value = "sorted"
    chart._clicked(chart.figure.data[0], points(0))
    assert list(session.layers.index[session.layers["state"] == "skipped"]) == [2]
    chart._clicked(chart.figure.data[0], points(11))  # the one that cannot be quantised
    assert chart.trouble.value == ""


def test_plotlys_own_click_path(session: Session) -> None:
    """What the browser's message triggers, through plotly itself."""
    chart = SensitivityChart(session)
    session.toggle(session.layers["name"][0])  # changes the legend's traces: clicks must go on
    chart.figure._handler_js2py_pointsCallback(
        {
            "new": {
                "event_type": "plotly_click",
                "points": {
                    "trace_indexes": [0],
                    "point_indexes": [6],
                    "xs": [6],
                    "ys": [0.1],
                },
                "device_state": None,
                "selector": None,
            }
        }
    )
    assert list(session.layers.index[session.layers["state"] == "skipped"]) == [0, 6]


def test_a_box_makes_all_its_layers_the_same(session: Session, points: Any) -> None:
    chart = SensitivityChart(session)
    session.toggle(session.layers["name"][1])
    chart._boxed(chart.figure.data[0], points(0, 1, 2))
    assert not session.layers["quant_enable"][:3].any()
    chart._boxed(chart.figure.data[0], points(0, 1, 2))
    assert session.layers["quant_enable"][:3].all()
    session.undo()
    assert not session.layers["quant_enable"][:3].any()


def test_the_line_and_what_lies_beyond(session: Session) -> None:
    chart = SensitivityChart(session)
    assert chart.skip.description == "1 below: skip it"
    chart.figure.layout.shapes[0].update(y0=0.5, y1=0.5)  # as a drag in the browser does
    assert chart.threshold.value == 0.5
    assert chart.skip.disabled
    chart.threshold.value = 0.9
    assert abs(chart.figure.layout.shapes[0].y0 - 0.1) < 1e-9
    chart.skip.click()
    assert list(session.layers.index[session.layers["state"] == "skipped"]) == [2]


def test_before_anything_is_measured(make_session: Callable[..., Session]) -> None:
    chart = SensitivityChart(make_session(measured=False))
    assert len(chart.figure.data[0].x) == 12
    assert chart.skip.description == "none below"
