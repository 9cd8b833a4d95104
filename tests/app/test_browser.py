"""The page in a real browser: chart, table, undo, reload and the threshold line stay in step."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import app_page
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

PROJECT = "digits-mobilenet"
FIRST = "stem.conv"
SECOND = "blocks.0.depthwise.conv"
NewPage = Callable[..., Any]


@pytest.fixture(scope="module")
def page(one_page: NewPage) -> Any:
    """One page for those tests that leave it as they found it, but for what is quantised."""
    return one_page(PROJECT, permissions=["clipboard-read", "clipboard-write"])


def settle(page: Any, count: int) -> None:
    app_page.wait_until(lambda: app_page.quantised(page)[0] == count, what=f"{count} quantised")


def all_on(page: Any) -> int:
    """Quantise everything by the toolbar, so that tests do not depend on each other's edits."""
    page.get_by_role("button", name="all shown", exact=True).click()
    page.get_by_text(re.compile(r"^\d+ selected$")).wait_for()
    page.get_by_role("button", name="Quantise", exact=True).click()
    total = app_page.quantised(page)[1]
    settle(page, total)
    page.get_by_role("button", name="none", exact=True).click()
    return int(total)


def test_click_on_a_bar_toggles_the_layer_everywhere(page: Any) -> None:
    total = all_on(page)
    for expected in (total - 1, total, total - 1, total):
        app_page.click_bar(page, 1)
        settle(page, expected)
        app_page.wait_until(
            lambda expected=expected: app_page.is_ticked(page, SECOND) == (expected == total),
            what="tick follows the bar",
        )


def test_click_on_a_tick_toggles_and_undo_redo_take_it_back(page: Any) -> None:
    total = all_on(page)
    untouched = app_page.cell(page, FIRST, "type")
    untouched.evaluate("cell => { cell.dataset.drawn = 'once'; }")
    app_page.cell(page, FIRST, "quant_enable").click()
    settle(page, total - 1)
    app_page.wait_until(lambda: not app_page.is_ticked(page, FIRST), what="tick cleared")
    assert untouched.get_attribute("data-drawn") == "once"  # what did not change is not drawn anew
    page.get_by_role("button", name="Undo").click()
    settle(page, total)
    app_page.wait_until(lambda: app_page.is_ticked(page, FIRST), what="tick back")
    page.get_by_role("button", name="Redo").click()
    settle(page, total - 1)


CHANGE_WHILE_BUILDING = """() => {
  const models = [...Bokeh.documents[0]._all_models.values()];
  const model = models.find((found) => found.type.endsWith("DataTabulator"));
  const view = Bokeh.index.find_one_by_id(model.id);
  view.render();
  const columns = Object.entries(model.source.data);
  model.source.data = Object.fromEntries(columns.map(([name, x]) => [name, x.slice(0, 2)]));
}"""


# A component that writes back what it drew must not undo what the server said meanwhile.
ECHO = """() => {
  const models = [...Bokeh.documents[0]._all_models.values()];
  const { data } = models.find((found) => found.data && found.data.label === "Analyse");
  data.setv({ disabled: true });
  const after = data.disabled;
  data.setv({ disabled: true }, { sync: false });
  return [after, data.disabled];
}"""


# A table that still waits to be drawn for its size asks again and again whether it may.
WAITING_TABLES = """() => [...Bokeh.documents[0]._all_models.values()]
  .filter((found) => found.type.endsWith("DataTabulator"))
  .map((model) => Bokeh.index.find_one_by_id(model.id))
  .filter((view) => view && view.container)
  .map((view) => view._resize_pending)"""


def test_a_tab_comes_back_as_it_was_and_follows_at_once(new_page: NewPage) -> None:
    page = new_page(PROJECT)
    total = all_on(page)
    table = page.locator(".tabulator").first
    table.evaluate("node => { node.dataset.first = 'yes'; }")
    slow = page.context.new_cdp_session(page)
    slow.send("Emulation.setCPUThrottlingRate", {"rate": 4})  # what is rebuilt is late for the undo
    for _round in range(4):
        app_page.cell(page, FIRST, "quant_enable").click()
        settle(page, total - 1)
        page.get_by_role("tab", name="Inspect", exact=True).click()
        table.wait_for(state="hidden")
        page.get_by_role("tab", name="Layers", exact=True).click()
        page.get_by_role("button", name="Undo").click()
        table.wait_for()
        app_page.wait_until(lambda: app_page.is_ticked(page, FIRST), what="tick back")
    slow.send("Emulation.setCPUThrottlingRate", {"rate": 1})
    assert table.get_attribute("data-first") == "yes"
    app_page.bar(page, 0).wait_for()

    # What arrives while a table is being built is in it: here all rows but two are taken away.
    page.evaluate(CHANGE_WHILE_BUILDING)
    rows = page.locator(".tabulator-row:visible")
    app_page.wait_until(lambda: rows.count() == 2, what="two rows")
    assert page.evaluate(ECHO) == [False, True]


def test_arrows_move_between_the_tabs(new_page: NewPage) -> None:
    page = new_page(PROJECT)
    tabs = page.get_by_role("tab")
    tabs.nth(1).focus()
    page.keyboard.press("ArrowLeft")
    app_page.wait_until(
        lambda: tabs.first.get_attribute("aria-selected") == "true", what="the first tab"
    )
    page.get_by_label("Map of the modules", exact=True).locator(".slice").first.wait_for()
    page.keyboard.press("End")
    page.get_by_role("button", name="Download ptq.json").wait_for()
    app_page.comes_back(page, page.reload)
    page.get_by_role("button", name="Download ptq.json").wait_for()
    tabs.last.focus()
    expect(tabs.last).to_be_focused()
    expect(tabs.last).to_have_attribute("tabindex", "0")
    expect(tabs.first).to_have_attribute("tabindex", "-1")


def test_edits_survive_a_reload_and_reach_a_second_window(new_page: NewPage) -> None:
    page = new_page(PROJECT)
    total = all_on(page)
    other = new_page(PROJECT)
    page.bring_to_front()
    app_page.cell(page, FIRST, "quant_enable").click()
    settle(page, total - 1)
    other.bring_to_front()
    settle(other, total - 1)
    page.bring_to_front()
    page.get_by_role("button", name="first + last", exact=True).click()
    page.get_by_text("2 selected").wait_for()
    app_page.comes_back(page, page.reload)
    # A cookie that comes too late for the page is noticed by it.
    page.evaluate("Object.defineProperty(document, 'cookie', { get: () => '', set: () => {} })")
    app_page.comes_back(page, page.reload)
    page.get_by_text("2 selected").wait_for()
    settle(page, total - 1)
    app_page.wait_until(lambda: not app_page.is_ticked(page, FIRST), what="the table")
    app_page.wait_until(lambda: page.evaluate(WAITING_TABLES) == [False], what="a page at rest")


def test_a_box_selects_and_the_buttons_change_the_selection(page: Any) -> None:
    total = all_on(page)
    boxes = [app_page.bar(page, i).locator("path").first.bounding_box() for i in (1, 3)]
    page.mouse.move(boxes[0]["x"] - 2, boxes[0]["y"] - 60)
    page.mouse.down()
    page.mouse.move(boxes[1]["x"] + boxes[1]["width"] + 2, boxes[1]["y"] + 2, steps=6)
    page.mouse.up()
    page.get_by_text("3 selected").wait_for()
    page.get_by_role("button", name="Skip", exact=True).click()
    settle(page, total - 3)
    page.get_by_role("button", name="none", exact=True).click()
    page.get_by_text("3 selected").wait_for(state="hidden")


def test_filter_narrows_chart_and_table_alike(page: Any) -> None:
    box = page.get_by_label("filter name (regex)")
    box.press_sequentially("depthwise")
    box.press("Enter")
    app_page.wait_until(lambda: page.locator(".tabulator-row").count() < 20, what="fewer rows")
    bars = page.locator(".barlayer .trace").first.locator(".point")
    app_page.wait_until(lambda: bars.count() == page.locator(".tabulator-row").count(), what="same")
    expect(page.get_by_text(FIRST, exact=True)).to_have_count(0)
    box.fill("")
    box.press("Enter")
    app_page.cell(page, FIRST, "name").wait_for()


def test_dark_theme_reaches_chart_and_numbers(page: Any) -> None:
    light = page.locator(".wb-name").evaluate("node => getComputedStyle(node).color")
    page.get_by_role("button", name="Toggle theme").click()
    app_page.wait_until(
        lambda: page.locator(".wb-name").evaluate("node => getComputedStyle(node).color") != light,
        what="text changes colour",
    )
    title = page.locator(".g-ytitle text")
    app_page.wait_until(
        lambda: "151, 163, 177" in (title.get_attribute("style") or ""), what="axis in dark colours"
    )
    page.locator(".tabulator-col[tabulator-field='dmq']").hover()
    tip = page.locator(".tabulator-tooltip")
    expect(tip).to_contain_text("channels are balanced")
    expect(tip).not_to_have_css("background-color", "rgb(255, 255, 255)")
    page.mouse.move(1, 1)
    page.get_by_role("button", name="Toggle theme").click()
    expect(page.locator(".wb-name")).to_have_css("color", light)


def test_copy_as_python_fills_the_clipboard(page: Any) -> None:
    page.get_by_role("button", name="Copy as Python").click()
    page.get_by_role("button", name="Copy", exact=True).click()
    page.get_by_text("Copied").wait_for()
    text = page.evaluate("navigator.clipboard.readText()")
    compile(text, "log.py", "exec")
    assert PROJECT in text
    script = page.get_by_role("dialog").bounding_box()
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
    page.get_by_role("button", name="Open a project").click()
    page.get_by_role("button", name="Create project").wait_for()
    # As wide as it may be, whatever it holds: it does not jump from one source to the next.
    assert page.get_by_role("dialog").bounding_box()["width"] == script["width"] == 900
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")


def test_a_narrow_window_shows_all_four_figures(page: Any) -> None:
    for width in (600, 400):
        page.set_viewport_size({"width": width, "height": 800})
        box = page.locator(".wb-numbers")
        app_page.wait_until(
            lambda box=box, width=width: (
                box.evaluate("node => node.scrollWidth <= node.clientWidth")
                and box.bounding_box()["width"] < width
            ),
            what=f"figures in {width} pixels",
        )
        bar, spacer = page.locator("header"), page.locator(".MuiToolbar-root").last
        # The bar lies over the page; a spacer as high as it is keeps the tabs below it.
        app_page.wait_until(
            lambda bar=bar, spacer=spacer: (
                bar.bounding_box()["height"] <= spacer.bounding_box()["height"] + 10
            ),
            what="room for the bar",
        )
    page.set_viewport_size({"width": 1280, "height": 800})


def test_a_wrong_project_is_refused_in_words(browser: Any, server: str) -> None:
    page = browser.new_page()
    page.goto(f"{server}/apps?project=..%2F..%2Fetc")
    page.get_by_text("is not the name of a project").wait_for()
    page.get_by_role("link", name="digits-resnet").wait_for()
    page.close()


@pytest.mark.parametrize("path", ["netron/data/x/y.onnx", "download/0/../../../etc/passwd"])
def test_no_file_is_served_by_a_path(browser: Any, server: str, path: str) -> None:
    response = browser.new_context().request.get(f"{server}/{path}")
    assert response.status in (400, 403, 404)
