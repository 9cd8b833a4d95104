"""The Formats tab on the server's side: its states in words, choices, and what may be pressed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from format_models import make_linear_data, make_linear_net
from panel.models.tabulator import CellClickEvent
from sample_layers import layer

from workbench.app.formats_tab import FormatsTab
from workbench.app.page import WorkbenchPage
from workbench.app.window import FORMATS_TAB
from workbench.engine.analysis.module_formats import compare_formats
from workbench.studio import ErrorText, Session, jobtable
from workbench.studio.formats_state import (
    QuantizedLayer,
    QuantizedModel,
    store_formats,
    store_quantized,
)
from workbench.studio.project import Project


@pytest.fixture
def page(tmp_path: Path) -> Iterator[WorkbenchPage]:
    project = Project.create(tmp_path / "net", layers=[layer(i) for i in range(3)])
    project.store.put(figures={"metric_name": "top1", "metric_float": 0.98})
    page = WorkbenchPage(Session(project))
    page.window.tab = FORMATS_TAB
    yield page
    page.dispose()


@pytest.fixture(scope="module")
def measured() -> object:
    return compare_formats(make_linear_net(), [x for x, _ in make_linear_data()])


def pressable(tab: FormatsTab) -> set[str]:
    buttons = {"measure": tab.measure, "apply": tab.apply, "start": tab.start, "stop": tab.stop}
    return {name for name, button in buttons.items() if not button.disabled}


def submit(page: WorkbenchPage, kind: str) -> int:
    store = page.session.project.store
    job = jobtable.submit(store, kind, {}, runner="thread")
    jobtable.claim(store, job, runner="thread")
    return job


def ways(page: WorkbenchPage) -> dict[str, str]:
    table = page.formats.table.table.value
    return dict(zip(table["name"], table["way"], strict=True))


def test_from_nothing_to_a_measurement(page: WorkbenchPage, measured: object) -> None:
    tab, store = page.formats, page.session.project.store
    assert pressable(tab) == {"measure"}
    assert not tab.details.visible
    assert "Measure formats rounds each layer alone" in tab.text.object
    empty = tab.table.table.value["int8"].dtype
    job = submit(page, "formats")
    page.poll()
    assert pressable(tab) == {"stop"}
    assert 'role="status"' in tab.text.object
    store_formats(store, measured)  # type: ignore[arg-type]
    jobtable.finish(store, job, "finished")
    page.poll()
    assert pressable(tab) == {"measure", "apply", "start"}
    assert tab.details.visible
    row = tab.table.table.value.iloc[1]
    assert (row["name"], row["int4 g64"]) == ("fc", "—")
    assert row["int8"].endswith(" %")
    assert page.formats.table.table.value["int8"].dtype == empty, "or it is shown as numbers"
    assert row["smoothquant_db"].endswith(" dB")
    assert tab.table.layer == "fc", "where channels stand out most"
    assert "SmoothQuant: fc" in tab.smoothing_title.object
    assert '"block.fc"' in tab.errors.figure
    assert '"block.fc"' in tab.outliers.figure
    assert ways(page) == {
        "conv": "float", "fc": "int8 · minmax", "block.fc": "int8 · minmax", "lm_head": "float",
    }  # fmt: skip


def test_a_failure_is_said_in_words(page: WorkbenchPage) -> None:
    job = submit(page, "quantize")
    error = ErrorText("no layer would be quantised", "Cast the weights", "Traceback <x>")
    jobtable.finish(page.session.project.store, job, "failed", error)
    page.poll()
    assert "no layer would be quantised" in page.formats.state.pane.object
    assert "<x>" not in page.formats.state.pane.object, "escaped"


def test_choices_by_row_ticked_and_for_all(page: WorkbenchPage, measured: object) -> None:
    store_formats(page.session.project.store, measured)  # type: ignore[arg-type]
    page.poll()
    tab = page.formats
    table = tab.table.table
    tab.table._edited(type("Edit", (), {"column": "way", "row": 3, "value": "int4 · gptq"})())
    assert ways(page)["lm_head"] == "int4 · gptq"
    tab.table._edited(type("Edit", (), {"column": "way", "row": 0, "value": "int4 · gptq"})())
    assert "does not take Conv2d" in page.window.notice
    assert ways(page)["conv"] == "float", "what really holds is shown again"

    table._process_event(CellClickEvent(model=None, column="selected", row=2))
    assert tab.apply.label == "For 1 ticked"
    tab.format.value = "int4 g32"
    assert tab.algorithm.options == ["minmax", "awq", "gptq"]
    tab.algorithm.value = "awq"
    tab.apply.clicks += 1
    assert ways(page)["block.fc"] == "int4 g32 · awq"
    assert ways(page)["fc"] == "int8 · minmax"
    table._process_event(CellClickEvent(model=None, column="selected", row=2))
    tab.format.value = "float8/float8"
    tab.apply.clicks += 1
    assert set(ways(page).values()) == {"float8/float8 · ofmr"}, "which takes convolutions, too"
    tab.format.value = "float"
    assert tab.algorithm.disabled
    tab.apply.clicks += 1
    assert set(ways(page).values()) == {"float"}
    assert tab.start.disabled, "nothing to quantise"


def test_the_configuration_to_copy_and_the_float_type(
    page: WorkbenchPage, measured: object
) -> None:
    store_formats(page.session.project.store, measured)  # type: ignore[arg-type]
    page.poll()
    tab = page.formats
    assert tab.float_type.value == "bfloat16", "proposed, as float32 is not taken"
    assert "cast to bfloat16" in tab.text.object
    assert "'type': 'int8'" in tab.copy.text
    assert "'skip_layers': ['conv', 'lm_head']" in tab.copy.text
    tab.float_type.value = "keep"
    assert "2 layers would stay float" in tab.text.object
    tab.float_type.value = "any"
    assert "quantised all the same" in tab.text.object
    page.session.choose_way(["fc", "block.fc"], "hifloat8/hifloat8 · cast")
    assert "2 of 4 layers are to be quantised" in tab.text.object, "which takes float32"
    tab.start.clicks += 1
    assert "cannot start jobs" in page.window.notice


def test_another_layer_is_looked_at(page: WorkbenchPage, measured: object) -> None:
    store_formats(page.session.project.store, measured)  # type: ignore[arg-type]
    page.poll()
    tab = page.formats
    before = tab.smoothing.figure
    tab.table.table._process_event(CellClickEvent(model=None, column="name", row=3))
    assert "lm_head" in tab.smoothing_title.object
    assert tab.smoothing.figure != before
    tab.table.table._process_event(CellClickEvent(model=None, column="name", row=0))
    assert "appear here" in tab.smoothing.figure, "no inputs of a convolution are known"
    tab.shown.value = ["int8"]
    assert [trace["name"] for trace in json.loads(tab.errors.figure)["data"]] == ["int8"]
    page.window.dark = True
    assert tab.errors.figure != before


def test_the_result(page: WorkbenchPage, measured: object) -> None:
    store = page.session.project.store
    store_formats(store, measured)  # type: ignore[arg-type]
    done = QuantizedLayer("fc", "converted", "minmax", "–/int8", "", "")
    left = QuantizedLayer("lm_head", "float", "", "", "skip_layers has '<lm_head>'", "")
    result = QuantizedModel(
        0.98,
        0.975,
        0.97,
        4000,
        1000,
        "keep",
        ({},),
        (done, left),
        "/p/net_quantized",
        "/p/c.json",
        3.0,
    )
    store_quantized(store, result)
    page.poll()
    text = page.formats.result.object
    assert "98.0 %" in text
    assert "97.0 %" in text
    assert "−1.0 %" in text
    assert "1 layer quantised · 4.0× smaller · 3 s" in text
    assert "&lt;lm_head&gt;" in text
    assert page.session.quantized == result
