"""The three-minute story of the workbench, told to a real browser with the real engine."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import app_page
import pytest
import warm
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

PROJECT = "digits-mobilenet-hard"


def below_line(page: Any) -> int:
    found = re.match(r"(\d+) below", page.locator(".wb-count").inner_text())
    return int(found[1]) if found else 0


def drag_line(page: Any, pixels: int) -> list[str]:
    """Drag the threshold line by ``pixels`` and return what the count said on the way."""
    line = page.locator(".shapelayer path").first.bounding_box()
    x, y = line["x"] + line["width"] * 0.62, line["y"] + line["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    said = []
    for step in range(1, 11):
        page.mouse.move(x, y + pixels * step / 10)
        page.wait_for_timeout(40)
        said.append(page.locator(".wb-count").inner_text())
    page.mouse.up()
    return said


# The measured figure may take the place of the predicted one before a test has read it.
NOTE_PREDICTION = """node => {
  const root = node.getRootNode();
  const look = () => {
    window.predictionSeen = window.predictionSeen || root.textContent.includes("predicted");
  };
  new MutationObserver(look).observe(root, { subtree: true, childList: true, characterData: true });
}"""


def test_story(new_page: Callable[..., Any], workbench_home: Path, tmp_path: Path) -> None:
    page = new_page(PROJECT, permissions=["clipboard-read", "clipboard-write"])
    folder = workbench_home / "projects" / PROJECT
    first, total = app_page.quantised(page)
    assert first == total > 20

    app_page.start(page, "Analyse")
    app_page.job_ends(page)
    expect(page.locator(".wb-readout").first).to_contain_text(re.compile(r"\d\d\.\d %"))
    app_page.wait_until(lambda: below_line(page) >= 3, what="layers below the line")
    worse = below_line(page)
    page.locator(".wb-readout").first.evaluate(NOTE_PREDICTION)

    # The red bars are the tallest: click three of them.
    tops = [app_page.bar(page, i).locator("path").first.bounding_box()["y"] for i in range(total)]
    tallest = sorted(range(total), key=lambda i: tops[i])[:3]
    for clicks, index in enumerate(tallest, start=1):
        app_page.click_bar(page, index)
        app_page.wait_until(
            lambda clicks=clicks: app_page.quantised(page)[0] == total - clicks, what="bar clicked"
        )
    app_page.wait_until(lambda: page.evaluate("window.predictionSeen === true"), what="predicted")
    app_page.wait_until(lambda: below_line(page) == worse - 3, what="three fewer below the line")

    # A moment later the prediction has been measured, and no job was to be seen.
    app_page.wait_until(
        lambda: "predicted" not in page.locator(".wb-readout").first.inner_text(),
        seconds=120,
        what="measured",
    )
    expect(page.get_by_role("button", name="Analyse", exact=True)).to_be_enabled()
    page.get_by_role("button", name="Variants", exact=True).click()
    page.get_by_label("name", exact=True).fill("three in float")
    page.get_by_role("button", name="Save", exact=True).click()
    opener = page.get_by_role("button", name="Variants (1)", exact=True)
    opener.wait_for()

    # Dragged down, the line finds more and more layers worse, and counts while it moves.
    said = drag_line(page, 85)
    assert len(set(said)) > 2
    app_page.wait_until(lambda: below_line(page) > worse - 3, what="more layers below the line")
    count = below_line(page)
    page.locator(".wb-count").click()
    app_page.wait_until(
        lambda: app_page.quantised(page)[0] == total - 3 - count, what="skipped below the line"
    )
    for left in (total - 3, total - 2, total - 1, total):
        page.get_by_role("button", name="Undo").click()
        app_page.wait_until(lambda left=left: app_page.quantised(page)[0] == left, what="undone")
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()

    # The variant outlives the page, unfolded as it was; beside what is there now, both as measured.
    page.reload()
    page.get_by_role("button", name="Compare", exact=True).click()
    compared = page.get_by_role("region", name="Comparison")
    compared.get_by_text("3 layers differ").wait_for()
    row = compared.get_by_role("row").filter(has_text="top-1").first.inner_text()
    assert len(re.findall(r"\d\d\.\d %", row)) == 2, row
    page.get_by_role("button", name="Switch to it").click()
    app_page.wait_until(lambda: app_page.quantised(page)[0] == total - 3, what="switched")
    page.get_by_role("button", name="Undo").click()
    app_page.wait_until(lambda: app_page.quantised(page)[0] == total, what="and back")

    app_page.start(page, "Auto-calibrate")
    page.wait_for_timeout(1500)
    page.reload()  # in the middle of the search
    page.get_by_role("tabpanel", name="Search", exact=True).wait_for()
    app_page.job_ends(page)
    page.get_by_text("Done").wait_for()
    app_page.wait_until(lambda: 0 < app_page.quantised(page)[0] < total, what="some in float")

    app_page.start(page, "Export")
    app_page.job_ends(page)
    app_page.comes_back(page, page.reload)
    for kind in ("fake_quant", "deploy", "qdq"):
        page.get_by_role("link", name=re.compile(kind)).wait_for()
    page.get_by_text("✓").first.wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name=re.compile("deploy")).click()
    exported = next((folder / "exports").glob("*deploy*.onnx"))
    assert Path(download.value.path()).read_bytes() == exported.read_bytes()

    for frame in (page.frame_locator("iframe").nth(0), page.frame_locator("iframe").nth(1)):
        frame.locator("[id^='node-name-']").first.wait_for(timeout=20_000)

    page.get_by_role("button", name="Copy as Python").click()
    page.get_by_role("button", name="Copy", exact=True).first.click()
    page.get_by_text("Copied").first.wait_for()
    script = tmp_path / "log.py"
    script.write_text(page.evaluate("navigator.clipboard.readText()"), encoding="utf-8")
    warm.run([str(script)], cwd=tmp_path, check=True)
    again = next(tmp_path.rglob("*record.txt"))
    assert again.read_bytes() == (folder / "ptq.record.txt").read_bytes()
