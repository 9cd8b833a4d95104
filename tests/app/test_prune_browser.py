"""A network made narrower from the page: measured, planned, pruned, opened, both graphs seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import app_page
import pytest

pytestmark = pytest.mark.browser

PROJECT = "digits-resnet"
NEW = f"{PROJECT}-pruned"


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def numbers(page: Any) -> str:
    """Multiply-accumulates before and after, as the page says."""
    return str(page.locator(".wb-readout").filter(has_text="multiply-acc").inner_text())


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def test_pruning_from_the_page(new_page: Callable[..., Any], workbench_home: Path) -> None:
    page = new_page(PROJECT)
    app_page.wait_idle(page)
    tab(page, "Search")
    button(page, "Channels").click()
    button(page, "More settings").click()
    samples = page.get_by_label("batches of 8 samples", exact=True)
    samples.fill("2")
    samples.press("Enter")
    button(page, "Measure sensitivity").click()
    page.get_by_text("by 16 samples and cross-entropy").wait_for(timeout=240_000)
    heat = page.get_by_role("img", name="Sensitivity by layer and channel")
    heat.locator(".heatmaplayer image").wait_for()

    slider = page.get_by_role("slider", name="bit-operations, times fewer")
    before = numbers(page)
    slider.focus()
    slider.press("End")
    app_page.wait_until(lambda: numbers(page) != before, what="the plan follows the slider")
    for _step in range(3):
        slider.press("ArrowLeft")
    plan = page.get_by_role("img", name="Channels of each layer that stay")
    assert plan.locator(".barlayer .trace").count() == 2
    app_page.job_ends(page)
    button(page, "Use in Layers").click()
    app_page.cell(page, "layer1.0.conv1", "prune_enable").wait_for()
    ratio = app_page.cell(page, "layer1.0.conv1", "prune_ratio")
    app_page.wait_until(lambda: float(ratio.inner_text()) > 0.4, what="the plan in the table")
    tick = app_page.cell(page, "layer1.0.conv1", "prune_enable")
    assert app_page.checked(tick) == "true"

    tab(page, "Search")
    button(page, "Prune").click()
    page.get_by_role("link", name=f"Open {NEW}", exact=True).wait_for(timeout=240_000)
    app_page.job_ends(page)
    button(page, "Fewer settings").click()
    button(page, "More settings").wait_for()
    app_page.comes_back(page, page.reload)
    config = (workbench_home / "projects" / PROJECT / "prune.cfg").read_text()
    assert '"layer1.0.conv1"' in config and "prune_ratio" in config
    tab(page, "Export")
    for side, name in (("left", "before pruning"), ("right", "after pruning")):
        assert page.get_by_role("combobox", name=side).inner_text() == name

    tab(page, "Search")
    page.get_by_role("link", name=f"Open {NEW}", exact=True).click()
    page.wait_for_url(f"**?project={NEW}")
    page.locator(".tabulator-row").first.wait_for(timeout=90_000)
    shape = app_page.cell(page, "layer1.0.conv1", "shape").inner_text()
    assert int(shape.split("×")[0]) < 8
    tab(page, "Export")
    graphs = page.locator("iframe")
    app_page.wait_until(lambda: graphs.count() == 2, what="two graphs")
    for index in (0, 1):
        frame = graphs.nth(index).content_frame
        frame.locator('[id="node-name-layer1.0.conv1"]').wait_for(timeout=60_000)
