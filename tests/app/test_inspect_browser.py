"""Inspect in a real browser: from the table to a layer, compare, use, take back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import app_page
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

PROJECT = "inspect"
NewPage = Callable[..., Any]


@pytest.fixture(scope="module")
def page(one_page: NewPage, workbench_home: Path) -> Any:
    app_page.own_project(workbench_home, PROJECT, "digits-resnet")
    return one_page(PROJECT)


def row(page: Any, label: str, field: str) -> Any:
    rows = page.locator(".tabulator-row").filter(
        has=page.locator(".tabulator-cell[tabulator-field='label']").get_by_text(label, exact=True)
    )
    return rows.locator(f".tabulator-cell[tabulator-field='{field}']")


def test_compare_use_and_undo(page: Any, workbench_home: Path) -> None:
    app_page.wait_idle(page)
    name = page.locator(".tabulator-cell[tabulator-field='name']").nth(1)
    layer = name.inner_text()
    name.click()
    # A layer never looked at is compared at once.
    row(page, "HFMG", "use").wait_for(timeout=120_000)
    app_page.job_ends(page)
    expect(row(page, "IFMR", "state")).to_contain_text("in use")
    expect(row(page, "min–max", "use")).to_have_text("")
    row(page, "HFMG + DMQ 0.5", "use").click()
    app_page.wait_until(
        lambda: "in use" in row(page, "HFMG + DMQ 0.5", "state").inner_text(), what="in use"
    )
    file = workbench_home / "projects" / PROJECT / "ptq.json"
    app_page.wait_until(
        lambda: json.loads(file.read_text())[layer].get("dmq_balancer_param") == 0.5,
        what="ptq.json follows",
    )
    params = json.loads(file.read_text())[layer]["activation_quant_params"]
    assert params["act_algo"] == "hfmg"
    page.get_by_role("tab", name="Layers").click()
    app_page.wait_until(
        lambda: app_page.cell(page, layer, "act_algo").inner_text().strip() == "HFMG", what="table"
    )
    expect(app_page.cell(page, layer, "dmq")).to_have_text("0.5")
    page.get_by_role("button", name="Undo").click()
    app_page.wait_until(
        lambda: app_page.cell(page, layer, "act_algo").inner_text().strip() == "IFMR", what="undone"
    )
    expect(app_page.cell(page, layer, "dmq")).to_have_text("—")
    page.get_by_role("tab", name="Inspect").click()
    row(page, "HFMG", "use").wait_for()
    app_page.comes_back(page, page.reload)


def test_menus_of_the_selection_and_of_a_cell(page: Any) -> None:
    page.get_by_role("tab", name="Layers").click()
    page.get_by_role("button", name="none", exact=True).click()
    page.get_by_text("0 selected").wait_for()
    boxes = page.locator(".tabulator-cell[tabulator-field='selected']")
    names = page.locator(".tabulator-cell[tabulator-field='name']").all_inner_texts()[:2]
    boxes.nth(0).click()
    boxes.nth(1).click()
    page.get_by_text("2 selected").wait_for()
    page.get_by_role("button", name="act", exact=True).click()
    page.get_by_role("menuitem", name="HFMG").click()
    for name in names:
        app_page.wait_until(
            lambda name=name: app_page.cell(page, name, "act_algo").inner_text().strip() == "HFMG",
            what=f"{name} follows",
        )
    page.get_by_role("button", name="Undo").click()
    app_page.wait_until(
        lambda: app_page.cell(page, names[0], "act_algo").inner_text().strip() == "IFMR",
        what="both back in one step",
    )
    expect(app_page.cell(page, names[1], "act_algo")).to_have_text("IFMR")
    app_page.cell(page, names[0], "wts_algo").click()
    page.locator(".tabulator-edit-list-item").get_by_text("ADA", exact=True).click()
    app_page.wait_until(
        lambda: app_page.cell(page, names[0], "wts_algo").inner_text().strip() == "ADA",
        what="a cell's own menu",
    )
    page.get_by_role("button", name="Undo").click()
