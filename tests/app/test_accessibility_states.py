"""axe-core on what jobs leave on the page: running, failed and finished, in Chinese."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import history_case
import pruning_case
import pytest
import training_project
from axe import AxeWalk

from workbench.app.window import (
    EXPORT_TAB,
    HISTORY_TAB,
    LAYERS_TAB,
    SEARCH_TAB,
    TRAIN_TAB,
)
from workbench.studio import ErrorText, Project, jobtable
from workbench.studio.pruning_state import as_stored, store_pruning

pytestmark = pytest.mark.browser


def test_axe_finds_nothing_in_any_state_of_a_job(
    new_page: Callable[..., Any], workbench_home: Path
) -> None:
    project = Project.create(workbench_home / "projects" / "states", layers=pruning_case.layers())
    page = new_page("states", locale="zh-CN")
    page.get_by_role("tab", name="单层检查").wait_for()
    walk = AxeWalk(page)
    panel = page.get_by_role("tabpanel").filter(visible=True)

    def show(tab: int, part: str = "") -> None:
        page.get_by_role("tab").nth(tab).click()
        if part:
            page.get_by_role("button", name=part, exact=True).click()

    def appears(text: str) -> None:
        page.get_by_text(text).first.wait_for()

    search = history_case.add_job(project, "search", "running")
    show(SEARCH_TAB)
    page.get_by_role("button", name="取消").wait_for()
    walk.check("a search that runs")
    error = ErrorText("no memory left", "Use less.", "Traceback: <details>")
    jobtable.finish(project.store, search, "failed", error)
    appears("no memory left")
    walk.check("a search that failed")

    history_case.add_trial(project, search, ("stem",), 0.9)
    history_case.add_export(project, project.exports)
    training = training_project.begin(project)
    training_project.report(project, training, 1, 20)
    training_project.keep_checkpoint(project, training, 20)
    training_project.finish(project, training)
    store_pruning(project.store, pruning_case.pruning())
    shrunk = pruning_case.shrunk("prune", str(project.folder), str(project.folder))
    project.store.put(
        shrunk=as_stored(shrunk), decomposition=as_stored(pruning_case.decomposition())
    )
    show(SEARCH_TAB, "通道")
    appears("body.a")
    walk.check("channels that can go", part=panel)
    show(SEARCH_TAB, "张量分解")
    appears("64×64×3×3")
    walk.check("a decomposition tried", part=panel)
    for tab in (LAYERS_TAB, TRAIN_TAB, EXPORT_TAB, HISTORY_TAB):
        show(tab)
        walk.check(f"tab {tab}, finished", part=panel if tab != HISTORY_TAB else None)
    project.close()
    assert not walk.faults, str(walk)
