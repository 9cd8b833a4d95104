"""Charts on the ground that the notebook's page says it has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.charts import sensitivity_chart
from workbench.charts.theme import DARK, LIGHT, PAPER
from workbench.studio.session import Session
from workbench.widgets import NetronView, SensitivityChart, ground
from workbench.widgets.chart import Chart

PAGES = {
    "JupyterLab, light": ('<body data-jp-theme-light="true" style="background: #111">', False),
    "JupyterLab, dark": ('<body data-jp-theme-light="false">', True),
    "dark ground behind": ('<body style="background: rgb(17 17 17)"><div>', True),
    "light ground in a dark page": (
        '<body data-vscode-theme-kind="vscode-dark" style="background: black">'
        '<div style="background: white">',
        False,
    ),
    "VS Code, dark": ('<body data-vscode-theme-kind="vscode-dark">', True),
    "VS Code, high contrast": ('<body data-vscode-theme-kind="vscode-high-contrast">', True),
    "VS Code, light": ('<body data-vscode-theme-kind="vscode-high-contrast-light">', False),
    "no theme": ("<body>", False),
    "as the system": ('<html style="color-scheme: light dark"><body>', True),
}


def say(view: SensitivityChart, message: Any) -> None:
    (chart,) = [child for child in view.children if isinstance(child, Chart)]
    chart.downloads._handle_custom_msg(message, [])


def colours(view: SensitivityChart) -> str:
    return json.dumps(view.figure.to_dict()["data"][0]["marker"], default=list)


def test_charts_are_drawn_again_for_the_ground_they_stand_on(
    session: Session, tmp_path: Path
) -> None:
    following, fixed = SensitivityChart(session), SensitivityChart(session, dark=False)
    gone = SensitivityChart(session)
    gone.dispose()
    graph = NetronView(session)
    say(following, {"type": "ground", "dark": True})
    assert following.figure.layout.paper_bgcolor == PAPER[True]
    assert DARK.worse in colours(following) and LIGHT.worse not in colours(following)
    wanted = sensitivity_chart(session.layers, dark=True).layout.template
    assert following.figure.layout.template == wanted
    assert fixed.figure.layout.paper_bgcolor == PAPER[False]
    assert LIGHT.worse in colours(fixed)
    session.toggle(session.layers["name"][0])
    assert following.figure.layout.paper_bgcolor == PAPER[True]

    # The next kernel is not told before its cells have run.
    ground._heard = None
    assert SensitivityChart(session).figure.layout.paper_bgcolor == PAPER[True]
    assert NetronView(session).dark
    graph.dark = True  # by the page, at once
    graph.dark = False
    assert following.figure.layout.paper_bgcolor == PAPER[False]
    assert DARK.worse not in colours(following)
    assert (tmp_path / "home" / "notebook-theme").read_text() == "light\n"
    assert DARK.worse in NetronView(session, dark=True).colors.values()


@pytest.mark.parametrize("text", ["", "purple", "\udcff"])
def test_a_file_that_says_nothing_is_light(tmp_path: Path, text: str) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "notebook-theme").write_text(text, errors="surrogateescape")
    assert not ground.dark()


def test_where_nothing_can_be_kept_it_is_known_to_this_kernel(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file in the way")
    ground.heard(True)
    assert ground.dark()


@pytest.mark.browser
def test_the_ground_is_found_in_any_notebook(browser: Any) -> None:
    page = browser.new_page(color_scheme="dark")
    found = {}
    for name, (html, _dark) in PAGES.items():
        page.set_content(f"<!doctype html>{html}<p id=chart></p>")
        found[name] = page.evaluate(
            f"() => {{ {ground.SCRIPT.read_text()}"
            "return standsOnDark(document.getElementById('chart')); }"
        )
    assert found == {name: dark for name, (_html, dark) in PAGES.items()}
    page.evaluate(
        f"() => {{ {ground.SCRIPT.read_text()} window.told = [];"
        "followGround(document.getElementById('chart'), (dark) => window.told.push(dark)); }"
    )
    page.wait_for_function("() => window.told.length === 1")
    page.emulate_media(color_scheme="light")
    page.wait_for_function("() => window.told.length === 2")
    page.evaluate("() => document.body.setAttribute('data-jp-theme-light', 'false')")
    page.wait_for_function("() => window.told.length === 3")
    assert page.evaluate("window.told") == [True, False, True]
    page.close()
