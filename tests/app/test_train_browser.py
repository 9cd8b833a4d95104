"""A full QAT of an example from the page: ticked, trained, stopped, resumed, exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import app_page
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

PROJECT = "train"


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def open_train(page: Any) -> None:
    page.get_by_role("tab", name="Train", exact=True).click()
    button(page, "Train").wait_for()


def fill(page: Any, label: str, value: str) -> None:
    box = page.get_by_label(label, exact=True)
    box.fill(value)
    box.press("Enter")


def test_qat_from_the_page(new_page: Callable[..., Any], workbench_home: Path) -> None:
    app_page.own_project(workbench_home, PROJECT, "digits-resnet")
    page = new_page(PROJECT)
    app_page.wait_idle(page)
    layer = page.locator(".tabulator-cell[tabulator-field='name']").first.inner_text()
    tick = app_page.cell(page, layer, "retrain_enable")
    app_page.wait_until(lambda: app_page.checked(tick) == "true", what="ticked")
    tick.click()
    app_page.wait_until(lambda: app_page.checked(tick) == "false", what="unticked")

    open_train(page)
    page.get_by_text("layers are ticked for it").wait_for()
    button(page, "More settings").click()
    fill(page, "epochs", "1")
    fill(page, "batch size", "512")
    fill(page, "checkpoint, steps", "2")
    button(page, "Train").click()
    page.get_by_text("step-0000000").first.wait_for(timeout=240_000)
    button(page, "Stop").click()
    page.get_by_text("Resume goes on after step").wait_for(timeout=60_000)

    button(page, "Fewer settings").click()
    app_page.comes_back(page, page.reload)
    button(page, "More settings").click()
    expect(page.get_by_label("checkpoint, steps", exact=True)).to_have_value("2")
    page.get_by_text("Resume goes on after step").wait_for()
    app_page.wait_until(button(page, "Resume").is_enabled, what="can be resumed")
    button(page, "Resume").click()
    page.get_by_text("Done").wait_for(timeout=240_000)
    expect(page.get_by_text("Done").locator("..")).to_contain_text("against float")
    loss = page.get_by_role("img", name="Loss by step")
    expect(loss.locator(".scatterlayer .trace")).to_have_count(2)
    bounds = page.get_by_role("img", name="Clip bounds by step")
    bounds.locator(".scatterlayer .trace").nth(1).wait_for(state="attached")

    config = json.loads((workbench_home / "projects" / PROJECT / "qat.json").read_text())
    assert config[layer]["retrain_enable"] is False
    assert sum(isinstance(x, dict) and x["retrain_enable"] for x in config.values()) > 10
    button(page, "Export trained model").click()
    page.get_by_text("network as trained ≈ ONNX fake-quant").wait_for(timeout=240_000)
    app_page.job_ends(page)
    exports = workbench_home / "projects" / PROJECT / "exports"
    for kind in ("fake_quant", "deploy"):
        assert (exports / f"{PROJECT}_qat_{kind}_model.onnx").stat().st_size > 10_000
    page.get_by_role("tab", name="Layers", exact=True).click()
    page.get_by_role("button", name="Undo").click()
    app_page.wait_until(lambda: app_page.checked(tick) == "true", what="undone")
