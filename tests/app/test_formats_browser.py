"""The Formats tab in a real browser: measured, chosen from the menu of a row, quantised."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import app_page
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

PROJECT = "digits-vit"
LAYER = "blocks.0.attention.key"


def test_formats_from_the_page(new_page: Callable[..., Any], workbench_home: Path) -> None:
    page = new_page(PROJECT)
    app_page.wait_idle(page)
    page.get_by_role("tab", name="Formats").click()
    page.get_by_role("button", name="Measure formats").click()
    page.get_by_text("quantise as").wait_for()
    cell = app_page.cell(page, LAYER, "way")
    expect(cell).to_have_text("int8 · minmax")
    # Not NaN: the table was empty when it was built.
    expect(app_page.cell(page, LAYER, "int8")).to_have_text(re.compile("%$"))
    cell.click()
    page.get_by_text("int8/int8 · smoothquant", exact=True).click()
    app_page.wait_until(
        lambda: cell.inner_text() == "int8/int8 · smoothquant", what="chosen from the menu"
    )
    page.get_by_text("smoothquant': {'smooth_strength'").first.wait_for()
    page.get_by_role("button", name="Quantise and measure").click()
    page.get_by_text("Quantised model").wait_for()
    app_page.comes_back(page, page.reload)
    written = workbench_home / "projects" / PROJECT / "exports" / f"{PROJECT}_quantized.json"
    layers = {layer["name"]: layer for layer in json.loads(written.read_text())["layers"]}
    assert layers[LAYER]["formats"] == "int8/int8"
    assert layers["head"]["formats"] == "–/int8"
    assert layers["patch_embed"]["action"] == "float"
