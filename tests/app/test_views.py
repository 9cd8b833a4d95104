"""The page on the server's side: a real project and session, events as the browser sends them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import param
import pytest
from bokeh.document import Document
from panel.io.state import set_curdoc
from panel.models.tabulator import CellClickEvent

from workbench.app.layer_chart import dragged_threshold
from workbench.app.page import WorkbenchPage
from workbench.app.projects import open_project, project_folder
from workbench.app.window import EXPORT_TAB, INSPECT_TAB, LAYERS_TAB, MODEL_TAB
from workbench.engine.analysis.compare import Alternative
from workbench.engine.analysis.histograms import LayerHistogram
from workbench.engine.analysis.profile import LayerProfile
from workbench.engine.errors import MissingFile, WrongValue
from workbench.engine.graph.layers import LayerInfo
from workbench.studio.inspections import Inspection, store_inspection
from workbench.studio.project import Project
from workbench.studio.session import Session
from workbench.studio.store import write_measurements

ERRORS = {"stem": 1e-4, "body.a": 0.2, "body.b": 0.03, "head": 1e-5}


def layer(name: str, index: int, **changes: Any) -> LayerInfo:
    values: dict[str, Any] = {
        "name": name, "type": "Conv2d", "order": index, "eligible": True, "reason": "",
        "has_bias": True, "groups": 1,
        "in_channels": 4, "out_channels": 4, "weight_shape": (4, 4, 3, 3), "parameters": 148,
        "macs": 9216, "input_shape": (1, 4, 8, 8), "output_shape": (1, 4, 8, 8), "calls": 1,
    }  # fmt: skip
    return LayerInfo(**{**values, **changes})


@pytest.fixture
def project(tmp_path: Path) -> Project:
    layers = [layer(name, i) for i, name in enumerate(ERRORS)]
    layers.append(layer("tail", 4, eligible=False, reason="its weight is shared"))
    project = Project.create(tmp_path / "net", layers=layers)
    with project.store.write() as connection:
        write_measurements(
            connection, [(name, 1.0 - error, 20.0, 1.0 - error) for name, error in ERRORS.items()]
        )
    return project


@pytest.fixture
def page(project: Project) -> Iterator[WorkbenchPage]:
    page = WorkbenchPage(Session(project))
    yield page
    page.dispose()


def enabled(page: WorkbenchPage) -> dict[str, bool]:
    table = page.session.layers
    return dict(zip(table["name"], table["quant_enable"].tolist(), strict=True))


def agree(page: WorkbenchPage) -> None:
    """Chart, table and session tell the same story in the same order."""
    import json

    table = page.layers.table.table.value
    names = json.loads(page.layers.chart.plot.texts)[0]["customdata"]
    assert names == list(table["name"])
    flags = enabled(page)
    assert [flags[name] for name in names] == table["quant_enable"].tolist()


def click(page: WorkbenchPage, row: int, column: str = "quant_enable") -> None:
    table = page.layers.table.table
    table._process_event(CellClickEvent(model=None, column=column, row=row))


def test_click_on_a_tick_toggles_one_layer(page: WorkbenchPage) -> None:
    click(page, 1)
    assert enabled(page) == {**dict.fromkeys(ERRORS, True), "body.a": False, "tail": False}
    agree(page)
    assert not page.layers.table.table.value["quant_enable"][1]
    page.session.undo()
    assert enabled(page)["body.a"]
    agree(page)


def test_click_on_a_bar_toggles_that_layer_in_any_order(page: WorkbenchPage) -> None:
    page.window.order = "sorted"
    agree(page)
    assert page.layers.table.table.value["name"][0] == "body.a"
    page.layers.chart.plot._handle_msg({"type": "click", "name": "body.a"})
    assert not enabled(page)["body.a"]
    agree(page)


def test_a_layer_that_cannot_be_quantised_says_why(page: WorkbenchPage) -> None:
    page.layers.chart.plot._handle_msg({"type": "click", "name": "tail"})
    assert "its weight is shared" in page.window.notice
    assert "its weight is shared" in str(page.notice.object)
    assert not enabled(page)["tail"]


def test_dragging_the_line_counts_and_skips(page: WorkbenchPage) -> None:
    count = page.layers.count
    assert count.count == 2
    page.layers.chart.plot._handle_msg(
        {"type": "shape", "changes": {"shapes[0].y0": 0.06, "shapes[0].y1": 0.04}}
    )
    assert page.window.threshold == pytest.approx(0.95)
    assert page.layers.threshold.value == pytest.approx(0.95)
    assert count.count == 1
    count._handle_msg({"type": "skip"})
    assert not enabled(page)["body.a"]
    assert enabled(page)["body.b"]
    assert count.count == 0
    agree(page)


@pytest.mark.parametrize(("quantity", "line"), [("error", 0.05), ("cosine", 0.95)])
def test_where_the_line_was_let_go(quantity: str, line: float) -> None:
    assert dragged_threshold({"shapes[0].y0": line}, quantity) == pytest.approx(0.95)
    assert dragged_threshold({"xaxis.range[0]": 1.0}, quantity) is None


def test_presets_and_bulk_edits(page: WorkbenchPage) -> None:
    tab = page.layers
    tab.select(("stem", "head", "tail"))
    tab.set_selected(False)
    assert [name for name, on in enabled(page).items() if on] == ["body.a", "body.b"]
    assert tab.table.table.value["selected"].tolist() == [True, False, False, True, True]
    page.session.undo()
    assert sum(enabled(page).values()) == 4
    tab.worst_k.value = 1
    tab.presets[0].clicks += 1
    assert page.window.selected == ("body.a",)
    tab.presets[2].clicks += 1
    assert page.window.selected == ("stem", "head")


def test_filter_is_the_same_for_chart_and_table(page: WorkbenchPage) -> None:
    page.layers.pattern.value = "body"
    assert list(page.layers.table.table.value["name"]) == ["body.a", "body.b"]
    agree(page)
    page.layers.pattern.value = "bo("
    assert "not a regular expression" in page.window.notice
    page.layers.pattern.value = ""
    assert page.window.notice == ""
    agree(page)


def test_two_windows_follow_each_other(project: Project) -> None:
    first = WorkbenchPage(Session(project))
    second = WorkbenchPage(Session(Project.open(project.folder)))
    try:
        click(first, 0)
        second.poll()
        assert enabled(second) == enabled(first)
        agree(second)
    finally:
        first.dispose()
        second.dispose()


def test_nothing_watches_after_dispose(project: Project) -> None:
    session = Session(project)

    def watchers(source: param.Parameterized) -> int:
        found = source.param.watchers
        return sum(len(w) for kinds in found.values() for w in kinds.values())

    before = watchers(session)
    page = WorkbenchPage(session)
    assert watchers(session) > before
    page.dispose()
    assert watchers(session) == before


def test_a_view_that_fails_does_not_stop_the_others(page: WorkbenchPage) -> None:
    def broken() -> None:
        raise RuntimeError("broken")

    page.layers.chart.watch(page.session, broken, "layers")
    click(page, 2)
    agree(page)


def test_a_hidden_tab_catches_up_when_it_is_opened(page: WorkbenchPage) -> None:
    before = page.model.chart.figure
    click(page, 0)
    assert page.model.chart.figure == before
    page.tabs.active = MODEL_TAB
    assert page.model.chart.figure != before


def test_empty_and_first_states(page: WorkbenchPage) -> None:
    assert "Nothing exported yet" in str(page.export.result.object)
    assert "after the first export" in str(page.export.graphs.empty.object)
    assert page.export.graphs.empty.visible
    assert "No trial yet" in page.search.metric.figure
    assert "weight is shared" in str(page.model.text.object)


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "/etc", "", "x" * 300, "a\0b"])
def test_a_project_name_is_never_a_path(name: str, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    with pytest.raises(WrongValue):
        project_folder(name)


def test_an_unknown_project_is_missing(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    with pytest.raises(MissingFile):
        open_project("nothing-here")


def test_menus_speak_short_and_set_what_they_mean(page: WorkbenchPage) -> None:
    tab = page.layers
    value = tab.table.table.value
    assert value["act_algo"].tolist()[:2] == ["IFMR", "IFMR"]
    assert value["dmq"][0] == "—"
    for column, text in (("act_algo", "HFMG"), ("dmq", "0.4"), ("wts_bits", 7)):
        tab.table._edited(SimpleNamespace(column=column, row=1, value=text))
    entry = page.session.quant_config().layers["body.a"]
    assert (entry.activation.act_algo, entry.dmq_balancer_param) == ("hfmg", 0.4)
    assert entry.weight is not None
    assert entry.weight.num_bits == 7
    assert not tab.bulk, "built when something is selected"
    page.window.selected = ("stem", "body.b", "tail")
    assert [menu.label for menu in tab.bulk] == [
        "Inspect", "train", "act", "wts", "act bits", "wts bits", "DMQ", "prune",
        "prune ratio",
    ]  # fmt: skip
    for call in tab.bulk[3]._on_click_callbacks:
        call({"label": "ADA"})
    config = page.session.quant_config()
    wanted = {"stem": "ada_quantize", "body.b": "ada_quantize", "body.a": "arq_quantize"}
    assert {n: config.layers[n].weight.wts_algo for n in wanted} == wanted  # type: ignore[union-attr]
    assert "1 of 3 layers were left alone; tail: its weight is shared" in page.window.notice
    page.window.selected = ()
    assert all(menu.disabled for menu in tab.bulk)


def test_a_click_on_a_name_opens_it_in_inspect(page: WorkbenchPage) -> None:
    click(page, 4, "name")
    assert "its weight is shared" in page.window.notice
    click(page, 2, "name")
    assert (page.window.inspected, page.window.tab) == ("body.b", INSPECT_TAB)
    tab = page.inspect
    assert tab.layer.options == list(ERRORS)
    assert tab.layer.value == "body.b"
    assert "Press Compare" in tab.text.object
    assert not tab.results.visible
    tab.next.clicks += 1
    assert page.window.inspected == tab.layer.value == "head"
    tab.start()
    assert "cannot start jobs" in page.window.notice, "this session only looks on"


def test_inspect_shows_what_was_found_and_uses_it(page: WorkbenchPage) -> None:
    page.window.param.update(inspected="stem", tab=INSPECT_TAB)
    store_inspection(page.session.project.store, inspection("stem"))
    page.session.poll()
    tab = page.inspect
    assert tab.results.visible
    assert tab.table.value["label"].tolist() == ["IFMR", "HFMG + DMQ 0.5", "min–max"]
    assert tab.table.value["use"].tolist() == ["", "use this", ""]
    assert "IFMR, 8 bits · ARQ, 8 bits, per channel · 2 of 3 batches" in tab.text.object
    tab.table._process_event(CellClickEvent(model=None, column="use", row=2))
    assert not page.session.can_undo, "a baseline cannot be used"
    tab.table._process_event(CellClickEvent(model=None, column="use", row=1))
    entry = page.session.quant_config().layers["stem"]
    assert (entry.activation.act_algo, entry.dmq_balancer_param) == ("hfmg", 0.5)
    assert tab.table.value["use"].tolist() == ["use this", "", ""]
    assert "have changed since" in tab.text.object
    light = tab.weights.figure
    page.window.dark = True
    assert tab.weights.figure != light
    page.session.undo()
    assert tab.table.value["use"].tolist() == ["", "use this", ""]
    page.session.project.store.forget_results()
    page.session.poll()
    assert not tab.results.visible


def inspection(name: str) -> Inspection:
    ways: list[tuple[str, str, dict[str, Any]]] = [
        ("activation", "IFMR", {"act_algo": "ifmr", "dmq": 0.0}),
        ("balance", "HFMG + DMQ 0.5", {"act_algo": "hfmg", "dmq": 0.5}),
        ("activation", "min–max", {}),
    ]
    found = tuple(
        Alternative(kind, "ifmr", label, settings, 0.1, 0.1, 3, 0.9, 0.1, 20.0, 0.1, False)
        for kind, label, settings in ways
    )
    ends, counts = np.linspace(-1.0, 1.0, 5), np.arange(4)
    histogram = LayerHistogram(name, ends, counts, -1.0, 1.0, 0.1, ends, counts, np.array([0.1]))
    profile = LayerProfile(histogram, ends, ends + 1, ends + 2, 8, ends, counts, ends, ends)
    settings = {
        "act_algo": "ifmr", "act_bits": 8, "dmq": 0.0, "wts_algo": "arq_quantize", "wts_bits": 8,
        "channel_wise": True,
    }  # fmt: skip
    return Inspection(name, settings, found, profile, 2, 3, 0, 0.0)


def test_a_tab_says_at_once_that_it_is_being_built(page: WorkbenchPage) -> None:
    document = Document()
    page.window.notice = "layer1.0.conv1: the depth is fixed"
    with set_curdoc(document):
        page.tabs.active = EXPORT_TAB
        assert not page.window.notice, "it was said of the tab before"
        place = page._places[EXPORT_TAB]
        assert [other.visible for other in page._places].count(True) == 1 and place.visible
        assert "being built" in place[0].object
        (later,) = document.session_callbacks
        later.callback()
        (built,) = place
        assert page.export.button in list(built.select())
        page.tabs.active = LAYERS_TAB
        page.tabs.active = EXPORT_TAB
        assert list(place) == [built] and not document.session_callbacks
