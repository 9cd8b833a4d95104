"""What a saved notebook shows without a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go
import pytest

from workbench.charts.theme import DARK
from workbench.studio.session import Session
from workbench.widgets import LayerTable, NetronView, SensitivityChart, Workbench, still
from workbench.widgets.chart import Chart

VIEW = "application/vnd.jupyter.widget-view+json"


def test_the_whole_workbench_is_kept_as_it_looks(session: Session) -> None:
    everything = Workbench(session)
    bundle = everything._repr_mimebundle_()
    assert VIEW in bundle  # with a kernel the widget comes first
    page = bundle["text/html"]
    assert page.count("<svg xmlns") >= 4
    assert "<h4>Search</h4>" in page and "No trial has run yet." in page
    assert "<button" not in page and "<input" not in page
    assert len(page) < 300_000


def test_the_table_shows_what_is_ticked(session: Session) -> None:
    names = list(session.layers["name"])
    table = LayerTable(session)
    before = still.still_html(table)
    assert all(name in before for name in names)
    session.toggle(names[0])
    assert still.still_html(table).count("☑") == before.count("☑") - 1


def test_a_picture_has_the_ground_of_its_chart(session: Session) -> None:
    page = still.still_html(SensitivityChart(session, dark=True))
    assert (
        f"rgb({', '.join(str(n) for n in bytes.fromhex(DARK.worse[1:]))})".replace(" ", "") in page
    )
    assert "background:#14191f" in page


def test_a_thousand_layers_and_a_chart_that_is_too_large(
    make_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    chart = SensitivityChart(make_session(1000))
    page = still.still_html(chart)
    assert "<svg xmlns" in page and len(page) < still.LARGEST
    monkeypatch.setattr(still, "LARGEST", 1000)
    assert "<svg" not in still.still_html(chart)


def test_a_chart_that_cannot_be_drawn_does_not_keep_the_widget_away(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_given: Any, **_options: Any) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(still, "figure_svg", fails)
    bundle = SensitivityChart(session)._repr_mimebundle_()
    assert VIEW in bundle and "text/html" not in bundle


def test_a_figure_of_ones_own() -> None:
    chart = Chart(go.Figure().add_bar(x=["a"], y=[1]), "my figures")
    page = chart._repr_mimebundle_()["text/html"]
    assert page.startswith("<div><b>my figures</b>") and "<rect" in page
    assert chart.figure.layout.paper_bgcolor == "#ffffff"
    chart.layout.display = "none"
    assert still.still_html(chart) == ""


def test_the_graph_says_where_it_is_drawn(session: Session) -> None:
    data, _metadata = NetronView(session)._repr_mimebundle_()
    assert "Export" in data["text/html"]
