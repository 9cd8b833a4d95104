"""What tests of the page do to it and read off it, in a real browser."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Error, expect

from workbench.studio import DataSpec, Project, ProjectSettings, SourceSpec

expect.set_options(timeout=30_000)  # as ``wait_until``; a machine with other work is slow


def own_project(home: Path, name: str, example: str) -> None:
    """A project of an example that no other file of tests edits, whichever shares its server."""
    folder = home / "projects" / name
    if not folder.exists():
        source, data = SourceSpec("zoo", example), DataSpec("zoo", example, 64, 2)
        Project.create(folder, settings=ProjectSettings(name, source, data, threads=1)).close()


def wait_until(condition: Callable[[], bool], *, seconds: float = 30.0, what: str = "") -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"timed out: {what}"
        time.sleep(0.02)


def cell(page: Any, name: str, column: str) -> Any:
    """The table cell of a layer, by its name and the column's field."""
    row = page.locator(".tabulator-row").filter(
        has=page.locator(".tabulator-cell[tabulator-field='name']").get_by_text(name, exact=True)
    )
    return row.locator(f".tabulator-cell[tabulator-field='{column}']")


def bar(page: Any, index: int) -> Any:
    return page.locator(".barlayer .trace").first.locator(".point").nth(index)


def click_bar(page: Any, index: int) -> None:
    """A real mouse click just under the top of a bar (on a log axis its foot is far below)."""
    box = bar(page, index).locator("path").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 2)
    page.mouse.down()
    page.mouse.up()


def quantised(page: Any) -> tuple[int, int]:
    """(n, m) of "n of m quantised" in the top bar."""
    text = page.locator(".wb-readout").last.inner_text()
    found = re.search(r"(\d+) of (\d+)", text)
    assert found, text
    return int(found[1]), int(found[2])


def checked(cell: Any) -> str | None:
    """What the check box in a cell says to a screen reader: "true" or "false"."""
    value: str | None = cell.get_by_role("checkbox").get_attribute("aria-checked")
    return value


def is_ticked(page: Any, name: str) -> bool:
    return checked(cell(page, name, "quant_enable")) == "true"


def wait_idle(page: Any, *, seconds: float = 90.0) -> None:
    """Wait until a job can be started: a new project is still being opened."""
    analyse = page.get_by_role("button", name="Analyse", exact=True)
    wait_until(analyse.is_enabled, seconds=seconds, what="idle")


def job_ends(page: Any, *, seconds: float = 240.0) -> None:
    """Wait until no job runs: the action buttons are back."""
    page.get_by_role("button", name="Cancel").wait_for(state="hidden", timeout=seconds * 1000)
    # A page that has just been loaded may not show Cancel yet.
    wait_idle(page, seconds=seconds)
    failures = page.get_by_role("alert").filter(has_text="✕")
    assert not failures.count(), failures.first.inner_text()


def start(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).first.click()
    page.get_by_role("button", name="Cancel").wait_for()


SHOWN = """
.wb-name, .wb-line, .wb-readout, [role=tab][aria-selected=true], input, [role=combobox],
[aria-pressed=true], .tabulator-row:first-child, table.wb tr
"""
VALUES = """
nodes => nodes.filter((node) => node.checkVisibility()).map((node) => {
  const box = node.type === 'checkbox' || node.type === 'radio';
  return `${node.localName} ${box ? node.checked : node.value || node.innerText}`;
})
"""


def shown(page: Any) -> list[str]:
    """What a reader finds on the page: project, figures, the tab in front, its fields, its tables.

    Without the job, which goes on meanwhile; nothing while the page is being loaded.
    """
    try:
        found: list[str] = page.locator(SHOWN).evaluate_all(VALUES)
    except Error as error:
        if "context was destroyed" not in str(error):
            raise
        return []
    return found


def comes_back(page: Any, leave: Callable[[], Any], *, seconds: float = 60.0) -> None:
    """After ``leave`` the page shows again what it showed before."""
    page.wait_for_timeout(500)  # what was changed last is kept with the next poll
    before = shown(page)
    assert sum(text.startswith("button") for text in before) >= 1, before
    leave()
    end = time.monotonic() + seconds
    while (now := shown(page)) != before:
        lost = [text for text in before if text not in now]
        new = [text for text in now if text not in before]
        assert time.monotonic() < end, f"after the page was loaded again\n-{lost}\n+{new}"
        time.sleep(0.1)
