"""From a request to a page: the frame's head, and building while the browser loads its scripts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import panel as pn
import pytest
from bokeh.document import Document
from panel.io.resources import Resources
from panel.io.state import set_curdoc
from panel.models.plotly import PLOTLY_VERSION

from workbench.app import frame, plotly_files, serve

CHARTS = Path(serve.__file__).parents[1] / "charts"


class Timers:
    """A document that only keeps its timers."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def add_timeout_callback(self, callback: Callable[[], None], _milliseconds: int) -> None:
        self.waiting.append(callback)

    def run(self) -> None:
        while self.waiting:
            self.waiting.pop()()


def pieces(done: list[str]) -> Iterator[None]:
    for name in ("views", "header", "main"):
        done.append(name)
        yield


@pytest.mark.parametrize("connects_after", [0, 1, 3])
def test_a_connected_browser_draws_before_the_rest_follows(
    monkeypatch: pytest.MonkeyPatch, connects_after: int
) -> None:
    done: list[str] = []
    drawn: list[Callable[[], None]] = []
    monkeypatch.setattr(serve, "_connected", lambda _document: len(done) >= connects_after)
    monkeypatch.setattr(type(pn.state), "loaded", property(lambda _self: bool(loaded)))
    monkeypatch.setattr(type(pn.state), "onload", lambda _self, call: drawn.append(call))
    loaded: list[bool] = []
    document: Any = Timers()
    serve._go_on(pieces(done), document)
    document.run()
    assert len(done) == connects_after
    assert len(drawn) == 1
    drawn[0]()  # Panel marks the document as loaded after these calls
    loaded.append(True)
    document.run()
    assert done == ["views", "header", "main"]


def test_a_page_whose_browser_is_gone_follows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: list[Callable[[], None]] = []
    done: list[str] = []
    page = SimpleNamespace(poll=lambda: done.append("poll"))
    window: Any = SimpleNamespace(state=None, write=lambda: done.append("write"))

    def periodic(_state: Any, tick: Callable[[], None], _period: int, start: bool) -> Any:
        ticks.append(tick)
        return SimpleNamespace(start=None)

    monkeypatch.setattr(serve, "open_project", lambda _name: None)
    monkeypatch.setattr(serve, "WorkbenchPage", lambda *_args: page)
    state = type(pn.state)
    monkeypatch.setattr(state, "curdoc", property(lambda _self: "document"))
    monkeypatch.setattr(state, "add_periodic_callback", periodic)
    for name in ("onload", "on_session_destroyed"):
        monkeypatch.setattr(state, name, lambda _self, _call: None)
    next(serve._build(window, window, "digits"))
    (tick,) = ticks
    for connected, expected in ((True, ["poll", "write"]), (False, ["write"])):
        monkeypatch.setattr(serve, "_connected", lambda _document, found=connected: found)
        done.clear()
        tick()
        assert done == expected


def test_the_small_plotly_is_the_version_of_panel_and_draws_our_charts() -> None:
    small = plotly_files.FOLDER / "plotly-cartesian.min.js"
    assert plotly_files.version(small) == PLOTLY_VERSION, "take the new file from npm, see vendor/"
    assert PLOTLY_VERSION in plotly_files.full_address()
    drawn = set(re.findall(r'moduleType:"trace",name:"(\w+)"', small.read_text("utf-8")))
    charts = [path for path in CHARTS.glob("*.py") if path.name != "model.py"]  # hierarchical
    added = {name for path in charts for name in re.findall(r"\.add_(\w+)\(", path.read_text())}
    assert {"bar", "heatmap", "scatter"} <= added
    assert added - {"annotation", "hline", "shape", "vline"} <= drawn


def test_what_a_page_loads_is_found_once_and_is_what_panel_finds() -> None:
    resources = Resources(mode="server")
    ours, other = Document(), Document()
    ours.template_variables["needed"] = frame._needed
    with set_curdoc(ours):
        pn.extension("tabulator")
        js, css = frame._find_resources([], resources)
        assert "tabulator" in js
        found = frame._resources([], resources)
        assert found == (js, css)
        assert frame._resources([], Resources(mode="server")) is found
    with set_curdoc(other):
        assert tuple(frame._resources([], resources)) != found  # no table's scripts


@pytest.mark.browser
def test_the_head_names_the_modules_and_they_are_there(browser: Any, server: str) -> None:
    request = browser.new_context().request
    page = request.get(f"{server}/apps?project=digits-mobilenet", timeout=90_000).text()
    modules = re.findall(r'<link rel="modulepreload" href="([^"]+)"', page)
    assert modules
    for url in modules:
        assert request.get(f"{server}/{url}").ok
    assert "es-module-shims" not in page
    (plotly,) = re.findall(r'<script src="([^"]+/plotly-[^"]+)"', page)
    assert plotly == plotly_files.cartesian_address()
    for address in (plotly, plotly_files.full_address()):
        answer = request.get(f"{server}/{address}")
        assert answer.ok
        assert "max-age" in answer.headers["cache-control"]
