"""The page for those who do not see it or use no mouse: axe-core on every tab, and the keyboard."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import app_page
import history_case as case
import pytest
from axe import TAGS, AxeWalk
from playwright.sync_api import expect
from sample_layers import layer

from workbench.app.style import BAR, PAPER
from workbench.charts.theme import palette
from workbench.studio import Project

NAMES = ("stem", "body.a", "body.b", "head")
NewPage = Callable[..., Any]

# The element with the focus, inside all shadow roots.
FOCUS = """
() => {
  let node = document.activeElement;
  while (node && node.shadowRoot && node.shadowRoot.activeElement) {
    node = node.shadowRoot.activeElement;
  }
  return [
    node.getAttribute('role') || node.localName,
    node.getAttribute('tabulator-field') || node.getAttribute('aria-label') || node.innerText || '',
    node.closest('.tabulator-row')?.querySelector('[tabulator-field=name]')?.innerText || '',
  ];
}
"""
COLOURS = ("color-contrast",)  # all that another theme changes


@pytest.fixture
def project(workbench_home: Path, request: pytest.FixtureRequest) -> str:
    """Four layers, two trials and an export; nothing runs."""
    name = request.node.name
    layers = [dataclasses.replace(layer(i), name=layer_) for i, layer_ in enumerate(NAMES)]
    made = Project.create(workbench_home / "projects" / name, layers=layers)
    search = case.add_job(made, "search")
    for floats, metric in ((("stem",), 0.9), (("stem", "head"), 0.97)):
        case.add_trial(made, search, floats, metric)
    case.add_export(made, made.exports, floats=("head",))
    return str(name)


def tabs(page: Any) -> list[tuple[str, Callable[[], None]]]:
    """What there is to look at, and how to come there; the parts of Search one by one."""

    def show(name: str, part: str = "") -> None:
        page.get_by_role("tab", name=name, exact=True).click()
        page.get_by_role("tabpanel", name=name, exact=True).wait_for()
        if part:
            page.get_by_role("button", name=part, exact=True).click()

    found = [
        (name, lambda name=name: show(name)) for name in page.get_by_role("tab").all_inner_texts()
    ]
    parts = ("Channels", "Decomposition")

    def tools() -> None:
        show("Layers")
        page.get_by_label("by module").set_checked(True)
        page.locator(".wb-group").first.wait_for()
        opener = page.get_by_role("button", name="Variants", exact=True)
        if opener.get_attribute("aria-pressed") != "true":
            opener.click()
        page.get_by_role("button", name="Delete …").wait_for()

    found.append(("Layers by module, variants", tools))
    return found + [(part, lambda part=part: show("Search", part)) for part in parts]


def turn_dark(page: Any) -> None:
    page.get_by_role("button", name="Toggle theme").click()
    label = page.locator(".wb-readout dt").first
    muted = f"rgb{tuple(bytes.fromhex(palette(True).muted[1:]))}"
    app_page.wait_until(
        lambda: label.evaluate("node => getComputedStyle(node).color") == muted,
        what="the dark theme is drawn",
    )
    page.wait_for_timeout(1000)  # controls fade into it


@pytest.mark.browser
def test_axe_finds_nothing_on_any_tab_in_light_and_dark(new_page: NewPage, project: str) -> None:
    page = new_page(project)
    walk = AxeWalk(page)

    panel = page.get_by_role("tabpanel").filter(visible=True)

    def check(what: str, part: Any) -> None:
        walk.check(what, TAGS if theme == "light" else COLOURS, part)

    for theme in ("light", "dark"):
        if theme == "dark":
            turn_dark(page)
        for index, (name, show) in enumerate(tabs(page)):
            show()
            check(f"{name}, {theme}", panel if index else None)  # the frame around it: once
        for opener in ("Copy as Python", "Open a project"):
            page.get_by_role("button", name=opener, exact=True).click()
            dialog = page.get_by_role("dialog")
            dialog.wait_for()
            check(f"{opener}, {theme}", dialog)
            page.keyboard.press("Escape")
            dialog.wait_for(state="hidden")
    assert not walk.faults, str(walk)


@pytest.mark.browser
def test_the_keyboard_alone_reaches_and_changes_layers(new_page: NewPage, project: str) -> None:
    page = new_page(project)
    keys = page.keyboard

    def focus() -> list[str]:
        return list(page.evaluate(FOCUS))

    def tab_to(role: str, *, most: int) -> list[str]:
        for _press in range(most):
            keys.press("Tab")
            if focus()[0] == role:
                return focus()
        raise AssertionError(f"no {role} after {most} times Tab, but {focus()}")

    def stands_on(*expected: str) -> None:
        app_page.wait_until(lambda: focus() == list(expected), what=f"{expected}, not {focus()}")

    assert tab_to("tab", most=8)[1] == "Layers"
    tab_to("gridcell", most=30)
    stands_on("gridcell", "selected", "stem")
    before = app_page.quantised(page)[0]
    was = app_page.is_ticked(page, "stem")
    for _column in range(6):
        keys.press("ArrowRight")
    stands_on("gridcell", "quant_enable", "stem")
    keys.press("Space")
    app_page.wait_until(lambda: app_page.quantised(page)[0] != before, what="toggled")
    app_page.wait_until(lambda: app_page.is_ticked(page, "stem") != was, what="tick follows")
    stands_on("gridcell", "quant_enable", "stem")
    keys.press("ArrowDown")
    stands_on("gridcell", "quant_enable", "body.a")

    # A menu in a cell: opened, left as it was, and the keyboard is back on the cell.
    for _column in range(3):
        keys.press("ArrowRight")
    stands_on("gridcell", "act_algo", "body.a")
    keys.press("Enter")
    app_page.wait_until(lambda: focus()[0] == "input", what="an editor")
    keys.press("Escape")
    stands_on("gridcell", "act_algo", "body.a")

    # Tab leaves the table, and comes back to the same cell.
    keys.press("Shift+Tab")
    assert focus()[0] != "gridcell"
    keys.press("Tab")
    stands_on("gridcell", "act_algo", "body.a")
    keys.press("Home")
    keys.press("Space")
    page.get_by_text("1 selected").wait_for()

    # By module: the headers are rows of the grid, too, and open and close.
    page.get_by_label("by module").focus()
    keys.press("Space")
    page.locator(".wb-group").nth(1).wait_for()
    group = page.locator(".wb-group").nth(1)
    expect(group).to_have_text("body · 2")
    tab_to("gridcell", most=12)
    stands_on("gridcell", "top level · 2", "")
    keys.press("ArrowDown")
    stands_on("gridcell", "selected", "stem")
    keys.press("ArrowRight")
    keys.press("ArrowDown")
    stands_on("gridcell", "name", "head")
    keys.press("ArrowDown")
    app_page.wait_until(lambda: focus()[:2] == ["gridcell", "body · 2"], what="on the header")
    keys.press("Enter")
    app_page.wait_until(
        lambda: not app_page.cell(page, "body.a", "name").count(), what="the group is closed"
    )
    expect(group).to_have_attribute("aria-expanded", "false")
    keys.press("Enter")
    app_page.cell(page, "body.a", "name").wait_for()
    app_page.wait_until(lambda: focus()[:2] == ["gridcell", "body · 2"], what="still there")
    keys.press("ArrowDown")
    stands_on("gridcell", "name", "body.a")
    keys.press("ArrowRight")
    stands_on("gridcell", "type", "body.a")

    opener = page.get_by_role("button", name="Copy as Python", exact=True)
    opener.focus()
    keys.press("Enter")
    page.get_by_role("dialog").wait_for()
    keys.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
    app_page.wait_until(
        lambda: "Copy as Python" in focus()[1], seconds=10, what=f"the button, not {focus()}"
    )


def contrast(one: str, other: str) -> float:
    """WCAG 2.1, "contrast ratio", of two colours written #rrggbb."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (
            part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_colours_of_page_and_charts_have_contrast_aa(dark: bool) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    colours = palette(dark)
    for ground in (PAPER[dark], BAR[dark]):
        for name in ("text", "muted", "accent", "good", "bad"):
            ratio = contrast(getattr(colours, name), ground)
            assert ratio >= 4.5, f"{name} on {ground}: {ratio:.2f}"
    assert contrast(colours.text, colours.hover) >= 4.5
