"""Two widgets on one session in a real JupyterLab: what one changes, the other shows."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import onnx
import pytest
from axe import TAGS, AxeWalk
from onnx import TensorProto, helper
from playwright.sync_api import expect
from servers import free_port, running_server

from workbench.charts.theme import DARK, PAPER

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"

READY = """() => {
    const panel = window.jupyterapp?.shell.currentWidget;
    const kernel = panel?.sessionContext?.session?.kernel;
    return kernel?.status === 'idle' && jupyterapp.commands.isEnabled('notebook:run-all-cells');
}"""

SETUP = """
from sample_layers import layer
from workbench.studio.project import Project
from workbench.studio.session import Session
from workbench import widgets
layers = [layer(i, eligible=i < 11) for i in range(12)]
project = Project.create({project!r}, layers=layers)
project.store.write_measurements([(l.name, 0.8 if i == 2 else 0.999, 30.0, 0.99)
                                  for i, l in enumerate(layers) if l.eligible])
session = Session(project)
"""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("a", "b")]
    node = helper.make_node("Relu", ["a"], ["b"], name="stage0.block0.conv")
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:])), path)
    return path


@pytest.fixture
def lab(tmp_path: Path, graph: Path) -> Iterator[str]:
    kernel = tmp_path / "data" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"})
    )
    config = tmp_path / "config" / "jupyter_server_config.d"
    config.mkdir(parents=True)
    shipped = ROOT / "jupyter-config" / "compression_workbench.json"
    (config / shipped.name).write_text(shipped.read_text())
    work = tmp_path / "work"
    work.mkdir()
    cells = [
        SETUP.format(project=str(tmp_path / "project")),
        "table = widgets.LayerTable(session); table",
        "chart = widgets.SensitivityChart(session); chart",
        "search = widgets.SearchMonitor(session); search",
        f"graph = widgets.NetronView({str(graph)!r}); graph",
    ]
    notebook = {
        "cells": [
            {
                "cell_type": "code",
                "id": f"c{i}",
                "execution_count": None,
                "metadata": {},
                "outputs": [],
                "source": text,
            }
            for i, text in enumerate(cells)
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (work / "two.ipynb").write_text(json.dumps(notebook))
    port = free_port()
    env = {
        "PYTHONPATH": os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")]),
        "WORKBENCH_HOME": str(tmp_path / "home"),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--port={port}", "--IdentityProvider.token=", f"--ServerApp.root_dir={work}"]
    command += ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url="]
    base = f"http://127.0.0.1:{port}/"
    with running_server(command, base + "api", tmp_path / "lab.log", env):
        yield base


def rgb(colour: str) -> str:
    """A colour of the palette as a browser tells it."""
    return f"rgb({', '.join(str(part) for part in bytes.fromhex(colour[1:]))})"


WIDE = """
() => [...document.querySelectorAll(".wb-chart")].every((box) => {
  const drawn = box.querySelector(".js-plotly-plot .main-svg");
  return drawn && Math.abs(drawn.clientWidth - box.clientWidth) < 24;
})
"""

PAPERS = """
(colour) => [...document.querySelectorAll(".wb-chart .main-svg:first-child")].every(
  (drawn) => getComputedStyle(drawn).backgroundColor === colour)
"""


ACCESSIBLE = tuple(tag for tag in TAGS if tag != "best-practice")
"""A tick of the table has its name as a title, which it shows as well."""


def test_widgets_follow_each_other(lab: str, browser: Any, tmp_path: Path) -> None:
    context = browser.new_context(viewport={"width": 1400, "height": 2200})
    page = context.new_page()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(lab + "lab/tree/two.ipynb")
    page.locator(".jp-Notebook").wait_for(timeout=60000)
    # Before the kernel is there the command is accepted and forgotten.
    page.wait_for_function(READY, timeout=120000)
    page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells'); }")

    boxes = page.locator(".wb-quant input:visible")
    bars = page.locator(".js-plotly-plot .barlayer .trace").first.locator(".point path")
    try:
        boxes.nth(11).wait_for(timeout=120000)
        bars.nth(11).wait_for(timeout=120000)
    except Exception:
        page.screenshot(path=str(tmp_path / "lab.png"), full_page=True)
        raise

    try:
        # The chart is as wide as its cell.
        page.wait_for_function(WIDE, timeout=30000)
        # The table toggles, the chart follows.
        before = bars.nth(3).get_attribute("style")
        boxes.nth(3).click()
        page.wait_for_function(
            "([i, style]) => document.querySelectorAll('.js-plotly-plot .barlayer .trace')[0]"
            ".querySelectorAll('.point path')[i].getAttribute('style') !== style",
            arg=[3, before],
            timeout=10000,
        )
        # The chart toggles, the table follows.
        assert boxes.nth(2).is_checked()
        bars.nth(2).scroll_into_view_if_needed()
        box = bars.nth(2).bounding_box()
        place = (box["x"] + box["width"] / 2, box["y"] + 30)  # on a log axis it has no lower end
        page.mouse.move(*place)  # plotly clicks what it hovers, and hovers a moment later
        page.locator(".hoverlayer .hovertext").first.wait_for()
        page.mouse.click(*place)
        page.wait_for_function(
            "() => !document.querySelectorAll('.wb-quant input')[2].checked", timeout=10000
        )
        # Netron is in the page, delivered by the server that is there anyway.
        frame = page.frame_locator("iframe.workbench-netron")
        node = frame.locator('[id="node-name-stage0.block0.conv"]')
        node.wait_for(timeout=30000)
        walk = AxeWalk(page)
        outputs = page.locator(".jp-OutputArea:has(.widget-box)")
        for i in range(outputs.count()):
            walk.check(f"output {i}", ACCESSIBLE, outputs.nth(i))
        # Charts and graph are dark when the notebook is.
        page.evaluate(
            "() => { jupyterapp.commands.execute('apputils:change-theme', "
            "{theme: 'JupyterLab Dark'}); }"
        )
        page.wait_for_function(PAPERS, arg=rgb(PAPER[True]), timeout=30000)
        expect(bars.nth(0)).to_have_css("fill", rgb(DARK.quantised))
        expect(frame.locator("html")).to_have_css("color-scheme", "dark")
        for i in range(outputs.count()):
            walk.check(f"output {i}, dark", ("color-contrast",), outputs.nth(i))
        assert not walk.faults, str(walk)
    except Exception:
        page.screenshot(path=str(tmp_path / "lab.png"))
        raise
    here = urlsplit(lab).netloc
    foreign = [u for u in requests if u.startswith("http") and urlsplit(u).netloc != here]
    assert foreign == []
    context.close()
