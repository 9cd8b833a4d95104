"""What must not take the page down: a killed worker, a cancel, a second project beside it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import app_page
import pytest
from playwright.sync_api import expect
from servers import RestartableServer

from workbench.studio import jobtable
from workbench.studio.jobs import worker_process
from workbench.studio.project import STORE_NAME
from workbench.studio.store import Store

pytestmark = pytest.mark.browser

QUICK = "digits-autoencoder"  # no other file has this one
OTHER = "safety"
NewPage = Callable[..., Any]


@pytest.fixture(scope="module")
def pages(one_page: NewPage, workbench_home: Path) -> dict[str, Any]:
    """A window on each project, which those tests share that leave no edits behind."""
    app_page.own_project(workbench_home, OTHER, "digits-resnet")
    return {project: one_page(project) for project in (QUICK, OTHER)}


@pytest.fixture
def worker_of(workbench_home: Path) -> Callable[[str], int]:
    """The number of a project's worker process, as soon as a job is under way in it."""

    def find(project: str) -> int:
        store = Store(workbench_home / "projects" / project / STORE_NAME)

        def at_work() -> bool:
            job = jobtable.latest(store)
            return job is not None and job.state == "running" and job.total > 0

        app_page.wait_until(at_work, seconds=60, what="the job has begun")
        found = worker_process(store)
        store.close()
        assert found is not None
        return found

    return find


def node(page: Any, frame: int, name: str) -> Any:
    return page.frame_locator("iframe").nth(frame).locator(f'[id="node-name-{name}"]')


def test_a_killed_worker_fails_the_job_in_words_and_the_next_job_runs(
    pages: dict[str, Any], worker_of: Callable[[str], int]
) -> None:
    page = pages[QUICK]
    page.bring_to_front()
    app_page.wait_idle(page)
    before = app_page.quantised(page)
    app_page.start(page, "Analyse")
    os.kill(worker_of(QUICK), signal.SIGKILL)
    alert = page.get_by_role("alert").filter(has_text="the worker died")
    alert.wait_for()
    expect(alert).to_contain_text("the project is safe")
    page.get_by_role("button", name="Cancel").wait_for(state="hidden")
    app_page.wait_until(lambda: app_page.quantised(page) == before, what="as it was")

    app_page.start(page, "Analyse")
    app_page.job_ends(page)
    page.get_by_text("the worker died").wait_for(state="hidden")


def test_cancel_is_said(pages: dict[str, Any], worker_of: Callable[[str], int]) -> None:
    page = pages[OTHER]
    page.bring_to_front()
    app_page.wait_idle(page)
    app_page.start(page, "Analyse")
    worker_of(OTHER)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("status").filter(has_text="cancelled").wait_for()
    page.get_by_role("button", name="Cancel").wait_for(state="hidden")
    expect(page.get_by_role("alert")).to_have_count(0)

    app_page.start(page, "Analyse")
    app_page.job_ends(page)


def test_two_windows_on_two_projects_do_not_see_each_other(
    pages: dict[str, Any], worker_of: Callable[[str], int]
) -> None:
    one, two = pages[QUICK], pages[OTHER]
    for page in (one, two):
        app_page.wait_idle(page)
    names = [page.locator(".wb-name").inner_text() for page in (one, two)]
    assert names == [QUICK, OTHER]
    first = [app_page.quantised(page) for page in (one, two)]
    assert first[0] != first[1]
    undo = two.get_by_role("button", name="Undo")
    app_page.wait_until(undo.is_disabled, what="nothing to undo")

    one.bring_to_front()
    one.get_by_role("button", name="all shown", exact=True).click()
    one.get_by_role("button", name="Skip", exact=True).click()
    app_page.wait_until(lambda: app_page.quantised(one)[0] == 0, what="all skipped")
    one.get_by_role("button", name="Undo").click()
    app_page.wait_until(lambda: app_page.quantised(one) == first[0], what="undone")
    app_page.start(one, "Analyse")
    worker_of(QUICK)

    # While the first project's job runs, the second has neither its edits nor its job.
    two.bring_to_front()
    two.wait_for_timeout(700)  # three polls
    assert not two.get_by_role("button", name="Cancel").is_visible()
    assert app_page.quantised(two) == first[1]
    assert undo.is_disabled()
    name = two.locator(".tabulator-cell[tabulator-field='name']").first.inner_text()
    app_page.cell(two, name, "quant_enable").click()
    app_page.wait_until(lambda: app_page.quantised(two)[0] != first[1][0], what="toggled")

    one.bring_to_front()
    app_page.job_ends(one)
    app_page.wait_until(lambda: app_page.quantised(one) == first[0], what="its own number")
    assert not one.get_by_text(name, exact=True).count()


def test_a_page_without_its_server_says_so_and_comes_back_as_it_was(
    pages: dict[str, Any], panel_server: RestartableServer, worker_of: Callable[[str], int]
) -> None:
    page = pages[QUICK]
    pages[OTHER].close()
    page.bring_to_front()
    app_page.wait_idle(page)
    page.get_by_role("tab", name="Search", exact=True).click()
    loss = page.get_by_label("largest loss, % points", exact=True)
    loss.fill("2.5")
    loss.press("Enter")
    lost = page.get_by_role("alert").filter(has_text="The connection to the server is lost.")

    def cut() -> None:
        page.context.set_offline(True)
        lost.wait_for()
        assert lost.evaluate(
            "node => node.getBoundingClientRect().top >= 0 && node.textContent.length > 60"
        )
        page.context.set_offline(False)
        lost.wait_for(state="detached")

    app_page.comes_back(page, cut)

    app_page.start(page, "Analyse")
    worker = worker_of(QUICK)
    panel_server.stop()
    lost.wait_for()
    page.get_by_role("button", name="Reconnect").click()
    page.get_by_text("The server does not answer yet.").wait_for()
    panel_server.start()
    lost.wait_for(state="detached")
    expect(loss).to_have_value("2.5")
    app_page.job_ends(page)
    os.kill(worker, 0)  # the same process did the job to its end
    expect(page.locator(".wb-readout").first).to_contain_text(re.compile(r"\d dB"))


def test_a_node_selects_its_layer_and_a_row_selects_its_node(new_page: NewPage) -> None:
    """A year from now, when a viewer that asks for its update would; nothing leaves the machine."""
    page = new_page(QUICK, days_ahead=366)
    app_page.wait_idle(page)
    cells = page.locator(".tabulator-cell[tabulator-field='name']")
    first, second = (cells.nth(i).inner_text() for i in range(2))
    app_page.start(page, "Export")
    app_page.job_ends(page)

    for frame in range(2):
        node(page, frame, first).wait_for()
    node(page, 0, first).locator(".node-item-type").first.click()
    # The other graph shows the same layer.
    app_page.wait_until(
        lambda: "select" in (node(page, 1, first).get_attribute("class") or "").split(),
        what="the node of the other graph is selected",
    )
    page.get_by_role("tab", name="Layers").click()
    page.get_by_text("1 selected").wait_for()
    selected = app_page.cell(page, first, "selected")
    app_page.wait_until(lambda: app_page.checked(selected) == "true", what="its row")

    page.get_by_role("button", name="none", exact=True).click()
    page.get_by_text("0 selected").wait_for()
    app_page.cell(page, second, "selected").click()
    page.get_by_text("1 selected").wait_for()
    page.get_by_role("tab", name="Export").click()
    for frame in range(2):
        app_page.wait_until(
            lambda frame=frame: (
                "select" in (node(page, frame, second).get_attribute("class") or "").split()
            ),
            what="the row's node is selected",
        )
