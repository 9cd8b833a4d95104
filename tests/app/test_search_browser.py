"""The Search tab in a real browser: paused, reloaded, resumed, compared, pinned, accepted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import app_page
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

PROJECT = "search-story"
MODEL = "digits-mobilenet-hard"


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def open_search(page: Any) -> None:
    page.get_by_role("tab", name="Search").click()
    button(page, "Start").wait_for()


def test_a_search_is_paused_reloaded_resumed_and_accepted(
    new_page: Callable[..., Any], workbench_home: Path
) -> None:
    app_page.own_project(workbench_home, PROJECT, MODEL)
    page = new_page(PROJECT)
    app_page.wait_idle(page)
    _, total = app_page.quantised(page)
    open_search(page)
    rows = page.locator(".tabulator-row")
    loss = page.get_by_label("largest loss, % points", exact=True)
    loss.fill("0.6")
    loss.press("Enter")
    button(page, "bit-operations").click()
    button(page, "Start").click()
    app_page.wait_until(lambda: rows.count() >= 2, seconds=120, what="two trials")
    button(page, "Pause").click()
    page.get_by_text("Paused.").wait_for()
    page.wait_for_timeout(1500)  # what was being evaluated ends
    app_page.comes_back(page, page.reload)
    page.get_by_text("Paused.").wait_for()
    expect(button(page, "Start")).to_be_disabled()
    count = rows.count()
    assert count >= 2

    # Two trials side by side, while the search is paused.
    app_page.wait_until(lambda: button(page, "Resume").is_enabled(), what="can be resumed")
    rows.nth(count - 1).click()
    rows.nth(count - 2).click()
    button(page, "Compare").click()
    region = page.get_by_role("region", name="Comparison")
    expect(region).to_contain_text(f"{total} layers differ")  # nothing float, and everything
    assert rows.count() == count, "still paused"

    # The most sensitive layer is pinned by a click in the strip, and free again after two more.
    strip = page.get_by_role("img", name="Layers by sensitivity and the bracket")
    if strip.locator(".barlayer .point").count():
        for said in ("(float)", "(quantised)", "A click on a layer"):
            box = strip.bounding_box()
            page.mouse.click(box["x"] + 60, box["y"] + 40)
            page.get_by_text(said).first.wait_for()

    button(page, "Resume").click()
    app_page.wait_until(lambda: button(page, "Accept best so far").is_enabled(), what="one passes")
    button(page, "Accept best so far").click()
    app_page.job_ends(page)
    app_page.wait_until(lambda: 0 < app_page.quantised(page)[0] < total, what="the accepted one")
    page.get_by_role("button", name="Undo").click()
    app_page.wait_until(lambda: app_page.quantised(page)[0] == total, what="undone in one step")

    # Started again, the trials that were run are known.
    button(page, "Start").click()
    page.get_by_text("Done").wait_for(timeout=200_000)
    app_page.wait_until(lambda: page.get_by_text("known before").count() >= 2, what="known ones")
