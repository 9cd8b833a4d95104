"""The Search tab on the server's side: trials, comparison, pins, and what may be pressed when."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sample_layers import layer

from workbench.app.page import WorkbenchPage
from workbench.app.window import LAYERS_TAB, SEARCH_TAB
from workbench.engine.analysis.cost import Cost
from workbench.studio import ErrorText, jobtable
from workbench.studio.project import Project
from workbench.studio.session import Session

NAMES = ("stem", "body.a", "body.b", "head")


@pytest.fixture
def page(tmp_path: Path) -> Iterator[WorkbenchPage]:
    layers = [dataclasses.replace(layer(i), name=name) for i, name in enumerate(NAMES)]
    project = Project.create(tmp_path / "net", layers=layers)
    page = WorkbenchPage(Session(project))
    page.window.tab = SEARCH_TAB
    yield page
    page.dispose()


def begin(page: WorkbenchPage) -> int:
    store = page.session.project.store
    job = jobtable.submit(store, "search", {}, runner="thread")
    jobtable.claim(store, job, runner="thread")
    page.poll()
    return job


def add(
    page: WorkbenchPage, job: int, floats: tuple[str, ...], metric: float, *, share: float = 1.0
) -> None:
    page.session.project.store.add_trial(
        job, phase="search", kind="probe", metric=metric, loss=0.98 - metric,
        satisfied=metric >= 0.975, seconds=1.5, float_layers=floats, config_hash="", share=share,
        cost=Cost(1000 + 100 * len(floats), 5_000_000 + 1000 * len(floats)),
    )  # fmt: skip
    page.poll()


def pressable(page: WorkbenchPage) -> set[str]:
    tab = page.search
    buttons = {
        "start": tab.start, "pause": tab.pause, "stop": tab.stop, "accept": tab.accept,
        "use": tab.trials.use, "export": tab.trials.export, "compare": tab.trials.compare,
    }  # fmt: skip
    return {name for name, button in buttons.items() if not button.disabled}


def test_what_can_be_pressed_in_each_state(page: WorkbenchPage) -> None:
    assert pressable(page) == {"start"}
    job = begin(page)
    assert pressable(page) == {"pause", "stop"}
    add(page, job, ("stem",), 0.95)
    assert pressable(page) == {"pause", "stop"}, "no trial has passed"
    add(page, job, ("stem", "head"), 0.978)
    assert pressable(page) == {"pause", "stop", "accept"}
    page.search.pause.clicks += 1
    assert page.session.job.state == "paused"
    assert page.search.pause.label == "Resume"
    assert "Paused" in str(page.search.text.object)
    assert page.search.start.disabled
    page.search.pause.clicks += 1
    assert page.session.job.state == "running"
    assert page.search.pause.label == "Pause"
    jobtable.finish(page.session.project.store, job, "failed", ErrorText("no memory", "Use less."))
    page.poll()
    assert "no memory" in str(page.search.state.pane.object)
    assert pressable(page) == {"start", "accept"}


def test_accept_takes_the_best_trial_and_stops(page: WorkbenchPage) -> None:
    job = begin(page)
    for floats in (("stem", "head", "body.a"), ("head",), ("stem", "head")):
        add(page, job, floats, 0.979 if len(floats) > 1 else 0.9)
    page.search.accept.clicks += 1
    assert jobtable.cancel_requested(page.session.project.store, job)
    table = page.session.layers
    assert table[~table["quant_enable"]]["name"].tolist() == ["stem", "head"]


def test_the_table_shows_every_trial_and_keeps_what_was_chosen(page: WorkbenchPage) -> None:
    job = begin(page)
    add(page, job, ("stem",), 0.95, share=0.031)
    add(page, job, ("stem", "head"), 0.978)
    table = page.search.trials.table
    first = table.value.iloc[1]
    assert (first["trial"], first["n_float"], first["target"]) == (0, 1, "✕")
    assert (first["size"], first["bops"], first["share"]) == ("1.10 kB", "5.00 MBOP", "3.1 %")
    table.selection = [1]
    assert page.search.trials.chosen == (0,)
    add(page, job, ("head",), 0.9)
    assert page.search.trials.chosen == (0,), "a new trial comes in above"
    table.selection = [0, 1, 2]
    assert len(page.search.trials.chosen) == 2
    page.search.trials.kind.value = "final"
    assert len(table.value) == 0
    page.search.trials.kind.value = "probe"
    assert len(table.value) == 3


def test_two_trials_are_compared(page: WorkbenchPage) -> None:
    job = begin(page)
    add(page, job, ("stem", "head"), 0.95)
    add(page, job, ("body.a", "head"), 0.978)
    trials = page.search.trials
    trials.table.selection = [0, 1]
    assert "compare" in pressable(page)
    trials.compare.clicks += 1
    text = str(trials.compared.object)
    assert "2 layers differ" in text
    assert text.index("stem") < text.index("body.a")
    assert "head" not in text
    trials.table.selection = [0]
    assert not trials.compared.visible


def test_a_trial_is_opened_in_layers(page: WorkbenchPage) -> None:
    job = begin(page)
    add(page, job, ("body.b",), 0.95)
    page.search.trials.table.selection = [0]
    page.search.trials.use.clicks += 1
    assert page.window.tab == LAYERS_TAB
    table = page.session.layers
    assert table[~table["quant_enable"]]["name"].tolist() == ["body.b"]


def strip(page: WorkbenchPage) -> dict[str, str]:
    """Layer to the pattern that the strip draws it with."""
    figure = json.loads(page.search.bracket.figure)
    texts = json.loads(page.search.bracket.texts)
    return {
        name: trace["marker"]["pattern"]["shape"]
        for trace, text in zip(figure["data"][1:], texts[1:], strict=True)
        for name in text["customdata"]
    }


def test_pins_by_a_click_in_the_strip_and_by_the_menu(page: WorkbenchPage) -> None:
    page.session.project.store.put(ranking=list(NAMES))
    page.poll()
    seen: list[Any] = []
    for _ in range(3):
        page.search.bracket._handle_msg({"type": "click", "name": "body.a"})
        seen.append((page.session.pins.get("body.a"), strip(page)["body.a"]))
    assert seen == [(False, "|"), (True, "+"), (None, "\\")]
    control = page.search.pins
    control.layer.value = "head"
    assert control.hold.value == "free"
    control.hold.value = "float"
    assert page.session.pins == {"head": False}
    page.window.tab = LAYERS_TAB
    words = dict(zip(page.layers.table.table.value["name"],
                     page.layers.table.table.value["state"], strict=True))  # fmt: skip
    assert words["head"] == "◆ pinned: float"
    page.session.toggle("head")
    words = page.layers.table.table.value["state"].tolist()
    assert words[3] == "◇ pinned: float"
    page.window.tab = SEARCH_TAB
    control.clear.clicks += 1
    assert page.session.pins == {}
    assert control.hold.value == "free"


def test_only_pareto_asks_what_to_make_small(page: WorkbenchPage) -> None:
    settings = page.settings
    objective = settings.panel()[-1]
    assert not objective.visible
    assert "objective" not in settings.arguments()
    settings.strategy = "Pareto"
    assert objective.visible
    objective.value = "bops"
    assert settings.arguments()["objective"] == "bops"


def test_the_pareto_chart_switches_and_points_at_a_trial(page: WorkbenchPage) -> None:
    job = begin(page)
    add(page, job, ("stem",), 0.95)
    add(page, job, ("stem", "head"), 0.978)
    tab = page.search
    before = tab.pareto.figure
    tab.cost.value = "bops"
    assert tab.pareto.figure != before
    tab.pareto._handle_msg({"type": "click", "name": "0"})
    assert tab.trials.chosen == (0,)
    tab.cost.value = "latency"
    assert "press Export" in tab.pareto.figure
