"""The History tab on the server: filters, order, what may be pressed, deleting with a question."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import history_case as case
import pytest
from sample_layers import layer

from workbench.app.page import WorkbenchPage
from workbench.app.window import HISTORY_TAB, LAYERS_TAB
from workbench.studio import jobtable
from workbench.studio.project import Project
from workbench.studio.session import Session

NAMES = ("stem", "body.a", "<img src=x>", "head")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    layers = [dataclasses.replace(layer(i), name=name) for i, name in enumerate(NAMES)]
    return Project.create(tmp_path / "net", layers=layers)


@pytest.fixture
def page(project: Project) -> Iterator[WorkbenchPage]:
    page = WorkbenchPage(Session(project))
    page.window.tab = HISTORY_TAB
    yield page
    page.dispose()


@pytest.fixture
def busy(page: WorkbenchPage) -> WorkbenchPage:
    """A search of three trials, an export, a training that failed."""
    project = page.session.project
    search = case.add_job(project, "search")
    for floats, metric in ((("stem",), 0.9), (("stem", "head"), 0.97), ((NAMES[2],), 0.95)):
        case.add_trial(project, search, floats, metric)
    case.add_export(project, project.exports, floats=("head",))
    case.add_job(project, "train", "failed", method="qat")
    page.poll()
    return page


def shown(page: WorkbenchPage) -> list[str]:
    return [str(name) for name in page.history.table.value["what"]]


def pressable(page: WorkbenchPage) -> set[str]:
    tab = page.history
    buttons = {"use": tab.use, "compare": tab.compare, "delete": tab.remove}
    return {name for name, button in buttons.items() if not button.disabled}


def test_before_anything_was_run(page: WorkbenchPage) -> None:
    assert page.history.empty.visible and not page.history.table.visible
    assert "Nothing has been run yet" in str(page.history.empty.object)
    assert pressable(page) == set()


def test_filters_and_order(busy: WorkbenchPage) -> None:
    tab = busy.history
    assert not tab.empty.visible and tab.table.visible
    assert shown(busy) == ["job 3", "job 2", "trial 2", "trial 1", "trial 0"]
    assert list(tab.kind.options.values()) == ["", "probe", "export", "train"]
    assert list(tab.job.options.values()) == [0, 1, 2, 3]
    tab.sort.value = "metric"  # the export has 0.97 as trial 1 has, and is newer
    assert shown(busy) == ["job 2", "trial 1", "trial 2", "trial 0", "job 3"]
    tab.sort.value = "size"
    assert shown(busy)[0] == "job 2" and shown(busy)[-1] == "job 3"
    tab.kind.value = "probe"
    assert set(shown(busy)) == {"trial 0", "trial 1", "trial 2"}
    tab.text.value = "HEAD"
    assert shown(busy) == ["trial 1"]
    tab.kind.value = ""
    tab.text.value = "deploy"
    assert shown(busy) == ["job 2"]
    tab.text.value = "no memory"
    assert shown(busy) == ["job 3"]
    tab.job.value = 1
    assert shown(busy) == [] and "No row is like this" in str(tab.hint.object)


def test_what_can_be_pressed(busy: WorkbenchPage) -> None:
    tab = busy.history
    tab.choose(("trial 1",))
    assert pressable(busy) == {"use", "delete"}
    tab.choose(("job 3",))
    assert pressable(busy) == {"delete"}, "a failed training has no configuration"
    assert "no memory left" in str(tab.detail.object)
    tab.choose(("trial 1", "job 2"))
    assert pressable(busy) == {"compare", "delete"}
    tab.choose(("trial 0", "trial 1", "job 2"))
    assert pressable(busy) == {"delete"}


def test_a_trial_beside_an_export(busy: WorkbenchPage) -> None:
    tab = busy.history
    tab.choose(("trial 2", "job 2"))
    tab.compare.clicks += 1
    text = str(tab.compared.object)
    assert "2 layers differ" in text and "&lt;img" in text and "<img" not in text
    assert "120 B · 1.00 ms" in text, "the export's qdq file"
    tab.choose(("trial 2",))
    assert not tab.compared.visible
    assert "&lt;img" in str(tab.detail.object) and "<img" not in str(tab.detail.object)


def test_an_export_is_opened_in_layers(busy: WorkbenchPage) -> None:
    busy.history.choose(("job 2",))
    assert "net_qdq_model.onnx" in str(busy.history.detail.object)
    busy.history.use.clicks += 1
    assert busy.window.tab == LAYERS_TAB
    table = busy.session.layers
    assert table[~table["quant_enable"]]["name"].tolist() == ["head"]


def test_deleting_asks_first_and_is_for_good(busy: WorkbenchPage) -> None:
    tab, exports = busy.history, busy.session.project.exports
    tab.choose(("trial 0", "job 2"))
    tab.remove.clicks += 1
    question = str(tab.question.object)
    assert tab.dialog.open
    assert "2 rows" in question and "net_deploy_model.onnx" in question
    assert "cannot be undone" in question
    tab.keep.clicks += 1
    assert not tab.dialog.open and len(shown(busy)) == 5 and len(list(exports.iterdir())) == 3
    tab.remove.clicks += 1
    tab.confirm.clicks += 1
    assert not tab.dialog.open
    assert shown(busy) == ["job 3", "trial 2", "trial 1"]
    assert list(exports.iterdir()) == []
    assert busy.session.exports is None


def test_the_job_that_runs_keeps_its_trials(page: WorkbenchPage) -> None:
    project = page.session.project
    job = case.add_job(project, "search", "running")
    case.add_trial(project, job, (), 0.9)
    page.poll()
    page.history.choose(("trial 0",))
    page.history.remove.clicks += 1
    assert not page.history.dialog.open
    assert "still at work" in page.window.notice
    jobtable.finish(project.store, job, "finished")
    page.poll()
    page.history.remove.clicks += 1
    assert page.history.dialog.open


def test_what_was_chosen_stays_chosen_when_more_comes_in(busy: WorkbenchPage) -> None:
    tab = busy.history
    tab.choose(("trial 1",))
    case.add_trial(busy.session.project, 1, ("body.a",), 0.5)
    busy.poll()
    assert tab.keys == ("trial 1",)
    assert len(shown(busy)) == 6
    tab.sort.value = "loss"
    assert tab.keys == ("trial 1",)


def test_a_chart_gives_its_figures(page: WorkbenchPage, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, str]] = []
    plot = page.layers.chart.plot
    monkeypatch.setattr(plot, "_send_msg", sent.append)
    plot._handle_msg({"type": "csv"})
    lines = sent[0]["csv"].splitlines()
    assert len(lines) == 1 + len(NAMES)
    assert [name in line for name, line in zip(NAMES, lines[1:], strict=True)] == [True] * 4
