"""History in a real browser: compared, opened in Layers, found, deleted after a question."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import app_page
import history_case as case
import pytest
from playwright.sync_api import expect
from sample_layers import layer

from workbench.studio import Project

pytestmark = pytest.mark.browser

NAMES = ("stem", "body.a", "body.b", "head")


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def row(page: Any, name: str) -> Any:
    cell = page.locator(".tabulator-cell[tabulator-field='what']").get_by_text(name, exact=True)
    return page.locator(".tabulator-row").filter(has=cell)


def test_history_from_filter_to_delete(
    new_page: Callable[..., Any], workbench_home: Path, tmp_path: Path
) -> None:
    layers = [dataclasses.replace(layer(i), name=name) for i, name in enumerate(NAMES)]
    project = Project.create(workbench_home / "projects" / "history", layers=layers)
    search = case.add_job(project, "search")
    for floats, metric in ((("stem",), 0.9), (("stem", "head"), 0.97)):
        case.add_trial(project, search, floats, metric)
    case.add_export(project, project.exports, floats=("head",))
    page = new_page("history")
    tab = page.get_by_role("tab", name="History", exact=True)
    tab.click()
    for name in ("job 2", "trial 1", "trial 0"):
        row(page, name).wait_for()
    boxes = [one.bounding_box() for one in page.get_by_role("tab").all()]
    assert len({box["y"] for box in boxes}) == 1 and boxes[-1]["x"] + boxes[-1]["width"] < 1280

    row(page, "trial 1").click()
    row(page, "job 2").click()
    button(page, "Compare").click()
    region = page.get_by_role("region", name="Comparison")
    expect(region).to_contain_text("1 layer differs")
    row(page, "job 2").click()
    page.get_by_text("Choose a second one").wait_for()

    # Sorted, the same row is still the chosen one, and it is what goes.
    page.get_by_label("sort by").click()
    page.get_by_role("menuitem", name="smallest loss").click()
    app_page.wait_until(
        lambda: page.locator(".tabulator-row").last.inner_text().startswith("trial 0"),
        what="sorted",
    )
    button(page, "Open in Layers").click()
    page.locator(".tabulator-cell[tabulator-field='quant_enable']").first.wait_for()
    app_page.wait_until(
        lambda: (
            [app_page.is_ticked(page, name) for name in ("stem", "head", "body.a")]
            == [False, False, True]
        ),
        what="trial 1 is open",
    )

    # What the chart draws, as a picture and as figures.
    chart = page.get_by_role("figure", name="Chart of the layers")
    for title, start in (
        ("the chart as a picture", b"\x89PNG"),
        ("the figures of the chart", "\ufeff".encode()),
    ):
        chart.hover()
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Download {title}").click()
        assert download.value.suggested_filename.startswith("history-Chart-of-the-layers")
        assert Path(download.value.path()).read_bytes().startswith(start)

    tab.click()
    page.get_by_label("contains").fill("deploy")
    page.get_by_label("contains").press("Enter")
    app_page.wait_until(lambda: page.locator(".tabulator-row:visible").count() == 1, what="found")
    row(page, "job 2").click()
    page.get_by_role("link", name="net_qdq_model.onnx").wait_for()
    button(page, "Delete …").click()
    page.get_by_text("This cannot be undone.").wait_for()
    button(page, "Delete for good").click()
    page.get_by_text("No row is like this.").wait_for()
    app_page.wait_until(lambda: not list(project.exports.iterdir()), what="the files are gone")
    app_page.comes_back(page, page.reload)
    page.get_by_text("No row is like this.").wait_for()
    project.close()
