"""中文 in a real browser: chosen in the top bar, kept over a reload, and this browser's alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import app_page
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

PROJECT = "digits-mobilenet"
NewPage = Callable[..., Any]


def tabs(page: Any) -> str:
    return " ".join(page.get_by_role("tab").all_inner_texts())


def quantised(page: Any) -> tuple[int, ...]:
    return tuple(
        int(n) for n in re.findall(r"\d+", page.locator(".wb-readout dd").last.inner_text())
    )


def is_there(page: Any) -> None:
    page.locator(".tabulator-row").first.wait_for()
    page.locator(".barlayer .point").first.wait_for(state="attached")


def test_the_switch_turns_the_page_into_chinese_for_this_browser_only(new_page: NewPage) -> None:
    page = new_page(PROJECT)
    other = new_page(PROJECT)
    page.bring_to_front()
    assert page.evaluate("document.documentElement.lang") == "en"
    box = page.get_by_label("filter name (regex)")
    box.press_sequentially("depthwise")
    box.press("Enter")
    # None at all is a table that is not drawn yet.
    app_page.wait_until(lambda: 0 < page.locator(".tabulator-row").count() < 20, what="fewer rows")

    page.get_by_label("Language").select_option("zh")
    page.get_by_role("tab", name="模型").wait_for()
    is_there(page)
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    assert not re.search("[A-Za-z]{3}", tabs(page)), tabs(page)
    expect(page.get_by_label("按名称筛选")).to_have_value("depthwise")
    page.get_by_role("button", name="复制为 Python").wait_for()
    expect(page.locator(".wb-readouts")).to_contain_text("位运算量")
    expect(page.locator(".g-ytitle").first).to_contain_text("误差")

    before = quantised(page)
    name = "blocks.0.depthwise.conv"
    ticked = app_page.is_ticked(page, name)
    app_page.cell(page, name, "quant_enable").click()
    app_page.wait_until(lambda: quantised(page) != before, what="the number follows the tick")
    app_page.wait_until(lambda: app_page.is_ticked(page, name) != ticked, what="so does the tick")

    page.reload()
    page.get_by_role("tab", name="层", exact=True).wait_for()
    is_there(page)
    page.get_by_role("button", name="撤销").click()
    app_page.wait_until(lambda: quantised(page) == before, what="undone after the reload")

    other.bring_to_front()
    other.reload()
    other.get_by_role("tab", name="Layers", exact=True).wait_for()
    assert other.evaluate("document.documentElement.lang") == "en"

    page.bring_to_front()
    page.get_by_label("语言").select_option("en")
    page.get_by_role("tab", name="Layers", exact=True).wait_for()
    assert page.evaluate("document.documentElement.lang") == "en"


def test_a_chinese_browser_is_greeted_in_chinese(new_page: NewPage) -> None:
    page = new_page(PROJECT, locale="zh-CN")
    page.get_by_role("tab", name="单层检查").wait_for()
    expect(page.get_by_label("语言")).to_have_value("zh")
    # What is drawn later, by callbacks of its own, is in the same language.
    page.get_by_role("tab", name="训练", exact=True).click()
    page.get_by_text("损失将显示在这里").first.wait_for()
    page.get_by_role("button", name="更多设置").click()
    page.get_by_role("button", name="收起设置").wait_for()
    assert page.evaluate(
        "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    ), "nothing is wider than the page"
