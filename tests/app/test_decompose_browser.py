"""A user's exported program made smaller from the page: tried, decomposed, opened, both graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import app_page
import pytest
from playwright.sync_api import expect
from wide_net import write_wide_net

from workbench.studio import DataSpec, Project, ProjectSettings, SourceSpec

pytestmark = pytest.mark.browser

PROJECT = "wide"
NEW = f"{PROJECT}-decomposed"


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def test_decomposition_from_the_page(
    new_page: Callable[..., Any], workbench_home: Path, tmp_path: Path
) -> None:
    model, data = write_wide_net(tmp_path)
    settings = ProjectSettings(
        PROJECT, SourceSpec("pt2", str(model)), DataSpec("npz", str(data), 16, 1), threads=1
    )
    Project.create(workbench_home / "projects" / PROJECT, settings=settings).close()
    page = new_page(PROJECT)
    app_page.wait_idle(page)
    page.get_by_role("tab", name="Search", exact=True).click()
    button(page, "Decomposition").click()
    button(page, "Dry run").click()
    page.get_by_text("1 of 2 convolutions would be decomposed.").wait_for(timeout=120_000)
    row = page.locator("table.wb tr").filter(has_text="64×64×3×3")
    expect(row).to_contain_text("wide")
    expect(row).to_contain_text("0.0 %")
    expect(page.locator(".wb-readout").filter(has_text="parameters")).to_contain_text("→")

    app_page.job_ends(page)
    app_page.comes_back(page, page.reload)
    button(page, "Decompose").click()
    link = page.get_by_role("link", name=f"Open {NEW}", exact=True)
    link.wait_for(timeout=120_000)
    app_page.job_ends(page)
    link.click()
    page.wait_for_url(f"**?project={NEW}")
    page.locator(".tabulator-row").first.wait_for(timeout=90_000)
    for name, shape in (("wide.0", "32×64×3×1"), ("wide.1", "64×32×1×3")):
        expect(app_page.cell(page, name, "shape")).to_have_text(shape)

    page.get_by_role("tab", name="Export", exact=True).click()
    for side, name in (("left", "before decomposition"), ("right", "after decomposition")):
        expect(page.get_by_role("combobox", name=side)).to_have_text(name)
    graphs = page.locator("iframe")
    app_page.wait_until(lambda: graphs.count() == 2, what="two graphs")
    for index, name in ((0, "wide"), (1, "wide.0"), (1, "wide.1")):
        frame = graphs.nth(index).content_frame
        frame.locator(f'[id="node-name-{name}"]').wait_for(timeout=60_000)
