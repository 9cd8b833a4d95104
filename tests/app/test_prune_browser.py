"""A network made narrower from the page: measured, planned, pruned, opened, both graphs seen."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import app_page
import numpy as np
import onnx
import pytest
from playwright.sync_api import expect
from safetensors.numpy import load_file

pytestmark = pytest.mark.browser

PROJECT = "prune"
NEW = f"{PROJECT}-pruned"


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def numbers(page: Any) -> str:
    """Multiply-accumulates before and after, as the page says."""
    return str(page.locator(".wb-readout").filter(has_text="multiply-acc").inner_text())


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def fine_tune(page: Any) -> float:
    """One epoch of it in the Train tab, the weights taken over; per cent of top-1 as it says."""
    words = page.get_by_text("fine-tune it.")
    words.wait_for(timeout=90_000)
    before = percentages(words.inner_text())
    assert before[0] > 95 > before[1], "what pruning took"
    for label, value in (("epochs", "1"), ("batch size", "128")):
        page.get_by_label(label, exact=True).fill(value)
        page.get_by_label(label, exact=True).press("Enter")
    app_page.wait_until(button(page, "Train").is_enabled, what="the project is open")
    button(page, "Train").click()
    page.get_by_text("Done").wait_for(timeout=240_000)
    said = page.get_by_text("Done").locator("..").inner_text()
    trained, gained, original = percentages(said)[:3]
    assert trained > before[1] + 1 and original == before[0], said
    assert round(before[1] + gained, 1) == trained, said
    loss = page.get_by_role("img", name="Loss by step")
    expect(loss.locator(".scatterlayer .trace")).to_have_count(2)
    page.locator("tr", has_text="step-0000").filter(has_text=f"{trained} %").wait_for()

    button(page, "Use these weights").click()
    button(page, "Take the weights back").wait_for(timeout=120_000)
    app_page.job_ends(page)
    words = page.get_by_text("The model has the weights of a training (")
    expect(words).to_contain_text(f"{trained} %")
    page.locator(".wb-readout").filter(has_text=f"{trained} %").wait_for()
    return trained


def holds_the_weights(project: Path) -> None:
    """The exported float file has the values of the weights that were taken over."""
    (kept,) = (project / "weights").glob("*.safetensors")
    trained = load_file(kept)
    file = onnx.load(project / "exports" / f"{project.name}_float_model.onnx")
    values = {x.name: onnx.numpy_helper.to_array(x) for x in file.graph.initializer}
    names = [name for name, value in trained.items() if value.ndim > 1]
    assert len(names) > 10
    for name in names:
        assert np.array_equal(values[name], trained[name]), name


def percentages(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+) %", text)]


def test_pruning_from_the_page(new_page: Callable[..., Any], workbench_home: Path) -> None:
    app_page.own_project(workbench_home, PROJECT, "digits-resnet")
    page = new_page(PROJECT)
    app_page.wait_idle(page)
    tab(page, "Search")
    button(page, "Channels").click()
    button(page, "More settings").click()
    samples = page.get_by_label("batches of 8 samples", exact=True)
    samples.fill("2")
    samples.press("Enter")
    button(page, "Measure sensitivity").click()
    page.get_by_text("by 16 samples and cross-entropy").wait_for(timeout=240_000)
    heat = page.get_by_role("img", name="Sensitivity by layer and channel")
    heat.locator(".heatmaplayer image").wait_for()

    slider = page.get_by_role("slider", name="bit-operations, times fewer")
    crosses = heat.locator(".scatterlayer .point")
    before, crossed = numbers(page), crosses.count()
    slider.focus()
    slider.press("End")
    app_page.wait_until(lambda: numbers(page) != before, what="the plan follows the slider")
    app_page.wait_until(lambda: crosses.count() > crossed, what="the channels at rest")
    for _step in range(3):
        slider.press("ArrowLeft")
    plan = page.get_by_role("img", name="Channels of each layer that stay")
    expect(plan.locator(".barlayer .trace")).to_have_count(2)
    app_page.job_ends(page)
    button(page, "Use in Layers").click()
    app_page.cell(page, "layer1.0.conv1", "prune_enable").wait_for()
    ratio = app_page.cell(page, "layer1.0.conv1", "prune_ratio")
    app_page.wait_until(lambda: float(ratio.inner_text()) > 0.4, what="the plan in the table")
    tick = app_page.cell(page, "layer1.0.conv1", "prune_enable")
    app_page.wait_until(lambda: app_page.checked(tick) == "true", what="ticked")

    tab(page, "Search")
    button(page, "Prune").click()
    page.get_by_role("link", name=f"Open {NEW}", exact=True).wait_for(timeout=240_000)
    app_page.job_ends(page)
    button(page, "Fewer settings").wait_for()
    app_page.comes_back(page, page.reload)
    button(page, "Fewer settings").wait_for()
    config = (workbench_home / "projects" / PROJECT / "prune.cfg").read_text()
    assert '"layer1.0.conv1"' in config and "prune_ratio" in config
    tab(page, "Export")
    for side, name in (("left", "before pruning"), ("right", "after pruning")):
        expect(page.get_by_role("combobox", name=side)).to_have_text(name)

    tab(page, "Search")
    page.get_by_role("link", name="Fine-tune it", exact=True).click()
    page.wait_for_url(f"**?project={NEW}&tab=train")
    trained = fine_tune(page)
    tab(page, "Layers")
    shape = app_page.cell(page, "layer1.0.conv1", "shape")
    shape.wait_for()
    assert int(shape.inner_text().split("×")[0]) < 8
    tab(page, "Export")
    app_page.start(page, "Export")
    row = page.locator("tr").filter(has_text=f"{NEW}_float_model.onnx")
    row.filter(has_text=f"{trained} %").wait_for(timeout=240_000)
    app_page.job_ends(page)
    holds_the_weights(workbench_home / "projects" / NEW)
    graphs = page.locator("iframe")
    app_page.wait_until(lambda: graphs.count() == 2, what="two graphs")
    for index in (0, 1):
        frame = graphs.nth(index).content_frame
        frame.locator('[id="node-name-layer1.0.conv1"]').wait_for(timeout=60_000)
