"""The Search tab's parts for channels and decomposition, on the server's side."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pruning_case
import pytest
import training_project as training
from panel.models.tabulator import CellClickEvent

from workbench.app.page import WorkbenchPage
from workbench.app.prune_tab import PruneTab
from workbench.app.window import EXPORT_TAB, LAYERS_TAB, SEARCH_TAB, TRAIN_TAB
from workbench.studio import ErrorText, ExportedFile, ExportResult, jobtable
from workbench.studio.project import Project, ProjectSettings, SourceSpec
from workbench.studio.pruning_state import as_stored, store_pruning
from workbench.studio.session import Session


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkbenchPage]:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "projects" / "net"
    project = Project.create(folder, layers=pruning_case.layers())
    project.store.put(figures={"metric_name": "top1", "metric_float": 0.98})
    page = WorkbenchPage(Session(project))
    page.window.param.update(tab=SEARCH_TAB, search_part="channels")
    yield page
    page.dispose()


@pytest.fixture
def tab(page: WorkbenchPage) -> PruneTab:
    """With a search that has found something."""
    store_pruning(page.session.project.store, pruning_case.pruning())
    page.poll()
    return page.prune


def submit(page: WorkbenchPage, kind: str) -> int:
    store = page.session.project.store
    job = jobtable.submit(store, kind, {}, runner="thread")
    jobtable.claim(store, job, runner="thread")
    page.poll()
    return job


def pressable(tab: PruneTab) -> set[str]:
    buttons = {"measure": tab.measure, "stop": tab.stop, "use": tab.use, "prune": tab.prune}
    return {name for name, button in buttons.items() if not button.disabled}


def channels(tab: PruneTab) -> dict[str, tuple[int, int]]:
    """Layer to the channels that the chart shows as staying and going."""
    stay, go = json.loads(tab.plan.figure)["data"]
    return {
        name: (a, b)
        for name, a, b in zip(stay["x"], _numbers(stay["y"]), _numbers(go["y"]), strict=True)
    }


def _numbers(value: object) -> list[int]:
    """Plotly's own encoding of a numpy array, read back."""
    import base64

    if isinstance(value, dict):
        raw = base64.b64decode(value["bdata"])
        return [int(x) for x in np.frombuffer(raw, np.dtype(value["dtype"]))]
    assert isinstance(value, list)
    return [int(x) for x in value]


def test_from_nothing_to_a_measurement(page: WorkbenchPage) -> None:
    tab = page.prune
    assert pressable(tab) == {"measure"}
    assert not tab.details.visible
    assert "smaller and faster on every device" in tab.text.object
    job = submit(page, "prune_search")
    assert pressable(tab) == {"stop"}
    assert 'role="status"' in tab.text.object
    store_pruning(page.session.project.store, pruning_case.pruning())
    jobtable.finish(page.session.project.store, job, "finished")
    page.poll()
    assert tab.details.visible
    assert tab.text.object == ""
    assert pressable(tab) == {"measure", "use", "prune"}
    assert tab.target.value == 2, "2.00× to begin with"
    assert "64 samples and cross-entropy. More samples" in tab.about.object
    assert "those of body.a and body.b" in tab.about.object
    assert "1 layer cannot lose channels" in tab.blocked.object
    assert "&lt;model&gt;" in tab.blocked.object


def test_a_failure_is_said_in_words(page: WorkbenchPage) -> None:
    job = submit(page, "prune_search")
    error = ErrorText("the model has no layer that can be pruned", "Look at <x>")
    jobtable.finish(page.session.project.store, job, "failed", error)
    page.poll()
    assert "no layer that can be pruned" in page.prune.state.pane.object
    assert "&lt;x&gt;" in page.prune.state.pane.object


def test_everything_follows_the_slider(tab: PruneTab) -> None:
    heat = tab.heat.figure
    assert channels(tab) == {"stem": (4, 4), "body.a": (6, 2), "body.b": (6, 2)}
    # 1·4 + 2 · 4·6 + 6·10 of 216
    assert "216 → </span><span>112</span>" in tab.numbers.object
    assert "4.00 ms → </span><span>2.50 ms" in tab.numbers.object
    assert "latency · measured<" in tab.numbers.object
    tab.target.value = 3
    assert channels(tab) == {"stem": (2, 6), "body.a": (2, 6), "body.b": (2, 6)}
    assert "216 → </span><span>30</span>" in tab.numbers.object  # 1·2 + 2 · 2·2 + 2·10
    assert "as measured at 1.93×, the nearest" in tab.numbers.object
    assert tab.heat.figure == heat, "while the slider moves"
    tab.target.param.trigger("value_throttled")
    assert tab.heat.figure != heat
    tab.target.value = 0
    assert "removes nothing" in tab.numbers.object
    assert tab.prune.disabled


def test_one_ratio_and_the_ratios_of_the_table(tab: PruneTab) -> None:
    tab.by.value = "uniform"
    assert (tab.target.visible, tab.ratio.visible) == (False, True)
    assert channels(tab)["stem"] == (6, 2)
    assert "good first try" in tab.numbers.object
    tab.ratio.value = 2
    assert channels(tab)["stem"] == (4, 4)
    tab.by.value = "columns"
    assert channels(tab)["stem"] == (8, 0)
    assert tab.use.disabled and tab.prune.disabled
    session = tab.session
    session.config["stem"].prune_ratio = 0.5
    session.config["stem"].prune_enable = True
    assert channels(tab)["stem"] == (4, 4)
    assert not tab.prune.disabled
    session.set_flag(["body.a"], True, "prune_enable")
    assert channels(tab)["body.a"] == (8, 0)
    assert "1 layer loses nothing all the same. body.a" in tab.numbers.object


def test_a_plan_is_taken_over_and_taken_back(page: WorkbenchPage, tab: PruneTab) -> None:
    tab.use.clicks += 1
    assert page.window.tab == LAYERS_TAB
    layers = page.session.layers.set_index("name")
    assert layers["prune_enable"].to_dict() == {
        "stem": True, "body.a": True, "body.b": True, "head": False,
    }  # fmt: skip
    assert layers["prune_ratio"]["stem"] == pytest.approx(0.5)
    assert layers["prune_ratio"]["body.b"] == pytest.approx(0.25)
    page.session.undo()
    assert not page.session.layers["prune_enable"].any(), "in one step"


def test_pruning_in_the_table_of_layers(page: WorkbenchPage, tab: PruneTab) -> None:
    page.window.tab = LAYERS_TAB
    table, session = page.layers.table.table, page.session

    def shown() -> dict[str, tuple[bool, str, str]]:
        value = table.value
        return {
            name: (bool(tick), ratio, why)
            for name, tick, ratio, why in zip(
                value["name"], value["prune_enable"], value["prune_ratio"], value["reason"],
                strict=True,
            )
        }  # fmt: skip

    assert shown()["stem"] == (False, "0.20", "")
    assert shown()["head"][2] == "pruning: its outputs are those of the <model>"
    assert table.value["prune_sensitivity"].tolist() == ["0.045", "4.5", "4.5", "—"]
    # What the graph keeps whole cannot be ticked, alone or among others.
    table._process_event(CellClickEvent(model=None, column="prune_enable", row=3))
    assert not shown()["head"][0]
    assert "head: its outputs are those of the <model>" in page.window.notice
    session.set_flag(["body.a", "head"], True, "prune_enable")
    assert session.prune_ratios() == {"body.a": 0.2}
    session.undo()
    table._process_event(CellClickEvent(model=None, column="prune_enable", row=1))
    assert shown()["body.a"] == (
        True, "0.20", "pruning: its channels go with those of body.b: off",
    )  # fmt: skip
    # As the browser's editor does: a number comes into the column of texts.
    table._update_column("prune_ratio", np.array(["0.20", "0.20", 0.4, "0.20"], dtype=object))
    page.layers.table._edited(SimpleNamespace(column="prune_ratio", row=2, value=0.4))
    assert shown()["body.b"][1] == "0.40"
    page.layers.table._edited(SimpleNamespace(column="prune_ratio", row=2, value=1.5))
    assert "1.5 is not allowed" in page.window.notice
    assert shown()["body.b"][1] == "0.40"
    page.window.selected = ("body.a", "body.b")
    menus = {menu.label: menu for menu in page.layers.bulk}
    for label, text in (("prune", "prune"), ("prune ratio", "0.3")):
        for call in menus[label]._on_click_callbacks:
            call({"label": text})
    assert session.prune_ratios() == {"body.a": 0.3, "body.b": 0.3}
    assert shown()["body.a"][2] == ""
    page.window.quantity = "prune_sensitivity"
    axis = json.loads(page.layers.chart.plot.figure)["layout"]["yaxis"]
    assert axis["title"]["text"] == "prune sensitivity"


def test_prune_takes_the_plan_that_is_looked_at(page: WorkbenchPage, tab: PruneTab) -> None:
    tab.target.value = 3
    tab.prune.clicks += 1
    assert page.session.layers["prune_ratio"].tolist()[:3] == [0.75] * 3
    assert "cannot start jobs" in page.window.notice


@pytest.mark.parametrize("kind", ["prune", "decompose"])
def test_the_smaller_project_is_one_click_away(page: WorkbenchPage, kind: str) -> None:
    session = page.session
    folder = session.project.folder.parent / "net smaller"
    folder.mkdir()
    found = pruning_case.shrunk(kind, str(folder), str(session.project.folder))
    session.project.store.put(shrunk=as_stored(found))
    page.poll()
    part, other = page.prune, page.decompose
    if kind == "decompose":
        part, other = other, part
    assert other.done.object == other.result.object == ""
    shown = part.result.object
    assert '<a href="?project=net+smaller">Open net smaller</a>' in part.done.object
    assert '<a href="?project=net+smaller&amp;tab=train">Fine-tune it</a>' in part.done.object
    assert "98.0 %" in shown and "61.0 %" in shown and "−37.0 %" in shown
    assert "4.00 ms" in shown and "2.5×" in shown
    assert "fine-tune it under Train" in shown
    assert "&lt;model&gt;" in shown
    folder.rmdir()
    session.project.store.put(shrunk=as_stored(found), origin=as_stored(found))
    page.poll()
    page.session.param.trigger("shrunk")
    assert "deleted by now" in part.done.object
    for part in (page.prune, page.decompose):
        assert part.origin.visible
        assert '<a href="?project=net">net</a>' in part.origin.object
    assert "made of" in page.model.text.object


def test_a_smaller_model_is_to_be_fine_tuned_first(page: WorkbenchPage) -> None:
    project = page.session.project
    origin = as_stored(pruning_case.shrunk("prune", "", str(project.folder)))
    project.store.put(origin=origin)
    page.poll()
    page.window.tab = TRAIN_TAB
    tab = page.train
    assert (tab.settings.method, tab.settings.learning_rate) == ("finetune", 1e-3)
    assert "top-1 went from 98.0 % to 61.0 %: fine-tune it." in tab.origin.object
    training.finish(project, training.begin(project, method="finetune"))
    page.poll()
    assert "97.5 %" in tab.text.object and "98.0 % before it was made smaller" in tab.text.object
    assert "fine-tune it" not in tab.origin.object and "made of" in tab.origin.object

    project.store.put(weights=[{"file": "0123456789abcdef.safetensors", "method": "finetune"}])
    again = WorkbenchPage(Session(Project.open(project.folder)))
    assert again.train.settings.method == "qat", "it was fine-tuned"
    again.dispose()


def test_a_smaller_model_that_came_as_a_file_is_not_to_be_trained(
    page: WorkbenchPage, tmp_path: Path
) -> None:
    base = page.session.project.folder
    file = ProjectSettings("net", SourceSpec("onnx", "net.onnx"))
    project = Project.create(base.with_name("file"), layers=pruning_case.layers(), settings=file)
    found = as_stored(pruning_case.shrunk("decompose", str(base), str(base)))
    project.store.put(shrunk=found, origin=found)
    other = WorkbenchPage(Session(project))
    assert "Open net</a>" in other.decompose.done.object
    assert "Fine-tune" not in other.decompose.done.object
    assert "cannot be trained" in other.decompose.result.object
    assert "fine-tune it" not in other.train.origin.object
    other.dispose()


def test_both_graphs_side_by_side(page: WorkbenchPage, tmp_path: Path) -> None:
    files = [tmp_path / "before.onnx", tmp_path / "after.onnx", tmp_path / "net_deploy.onnx"]
    for time, file in enumerate(files):
        file.write_bytes(b"x")
        os.utime(file, (1000 + time, 1000 + time))
    page.window.tab = EXPORT_TAB
    view = page.export.graphs
    assert view.empty.visible
    found = pruning_case.shrunk("prune", str(tmp_path), "", (str(files[0]), str(files[1])))
    page.session.project.store.put(shrunk=as_stored(found))
    page.poll()
    assert list(view.left.options) == ["before pruning", "after pruning"]
    assert (view.left.value, view.right.value) == ("before", "after")
    assert [frame.src.split("&")[0].split("%2F")[-1] for frame in view.frames] == [
        "before.onnx", "after.onnx",
    ]  # fmt: skip
    deploy = ExportedFile("deploy", str(files[2]), 1, None, None, None, 4.0)
    float_ = ExportedFile("float", str(files[0]), 1, 0.9, None, None, 1.0)
    page.session.project.store.put(exports=asdict(ExportResult((float_, deploy), ())))
    page.poll()
    assert (view.left.value, view.right.value) == ("float", "deploy"), "what was made last"
    assert len(view.left.options) == 4


def test_a_project_elsewhere_is_named_and_not_linked(page: WorkbenchPage, tmp_path: Path) -> None:
    found = pruning_case.shrunk("prune", str(tmp_path / "far" / "<net>"), str(tmp_path / "base"))
    page.session.project.store.put(shrunk=as_stored(found))
    page.poll()
    assert "&lt;net&gt; was made" in page.prune.done.object
    (tmp_path / "far" / "<net>").mkdir(parents=True)
    page.session.param.trigger("shrunk")
    assert "&lt;net&gt;</code>" in page.prune.done.object
    assert "<a " not in page.prune.done.object


def test_settings_become_arguments(page: WorkbenchPage) -> None:
    tab = page.prune
    tab.fold.button.clicks += 1
    assert tab.fold.body.visible and tab.fold.button.label == "Fewer settings"
    tab.settings.param.update(sensitivity="l2", batches=4, max_ratio=0.5, aligned=True)
    assert tab.settings.arguments() == {
        "sensitivity": "l2", "batches": 4, "max_ratio": 0.5, "aligned": True,
    }  # fmt: skip
    settings = page.decompose.settings
    assert settings.arguments() == {
        "include": None, "exclude": None, "rank_rule": "compat", "energy": 0.9, "max_error": None,
        "min_gain": 0.0, "method": "gram", "balance": False,
    }  # fmt: skip
    settings.param.update(rank_rule="fixed", rank=24, include="*.conv1, layer4.*", max_error=0.3)
    found = settings.arguments()
    assert (found["rank_rule"], found["max_error"]) == (24, 0.3)
    assert found["include"] == ["*.conv1", "layer4.*"]


def test_multiples_of_sixteen_that_cancel_pruning_are_said(page: WorkbenchPage) -> None:
    store_pruning(page.session.project.store, pruning_case.pruning(aligned=True, latency=False))
    page.poll()
    assert "3 layers of at most 16 channels keep all of them" in page.prune.numbers.object
    assert "latency · not measured" in page.prune.numbers.object


def test_the_dry_run_of_a_decomposition(page: WorkbenchPage) -> None:
    page.window.search_part = "decompose"
    tab = page.decompose
    assert "the dry run says" in tab.text.object.lower()
    assert tab.table.object == ""
    page.session.project.store.put(decomposition=as_stored(pruning_case.decomposition()))
    page.poll()
    assert tab.text.object == ""
    assert "1 of 2 convolutions would be decomposed" in tab.totals.object
    assert "50.0 k → </span><span>25.4 k" in tab.totals.object
    rows = tab.table.object.split("<tr")[2:]
    assert "fewer than 64 &lt;channels&gt;" in rows[0] and "—" in rows[0]
    assert ">32<" in rows[1] and "36.9 k → 12.3 k" in rows[1] and "12.5 %" in rows[1]
    tab.try_it.clicks += 1
    assert "cannot start jobs" in page.window.notice
    submit(page, "decompose")
    assert tab.try_it.disabled and tab.start.disabled and not tab.stop.disabled


def test_parts_are_built_when_they_are_looked_at(page: WorkbenchPage) -> None:
    parts = page.search_parts
    assert "prune" in vars(page) and "search" not in vars(page)
    parts.switch.value = "quantise"
    assert page.window.search_part == "quantise"
    assert "search" in vars(page) and "decompose" not in vars(page)
    visible = {name for name, place in parts._places.items() if place.visible}
    assert visible == {"quantise"}


def test_dark_charts(page: WorkbenchPage, tab: PruneTab) -> None:
    before = tab.plan.figure, tab.heat.figure
    page.window.dark = True
    assert tab.plan.figure != before[0]
    assert tab.heat.figure != before[1]
