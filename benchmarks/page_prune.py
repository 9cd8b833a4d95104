"""The slider over plans of pruning in a real browser: figures and chart as it moves."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Row, threads
from benchmarks.page_scripts import STEP_UNTIL_DONE, WATCH_SLIDER
from workbench.engine.graph.layers import LayerInfo
from workbench.engine.search.channel_space import LayerCost
from workbench.engine.search.channel_table import (
    AxisRow,
    ChannelTable,
    GroupRow,
    LayerRow,
    ParameterRow,
)
from workbench.studio.project import Project
from workbench.studio.pruning_state import PruningState, plan_of, store_pruning

NAME = "bench-prune"
PLANS = 31
STEPS = 15
DRAG_SECONDS = 2.0


def prepare_plans(home: Path, layers: list[LayerInfo]) -> None:
    """A project with a search of a chain of ``layers``, which have equally many channels."""
    project = Project.create(home / "projects" / NAME, layers=layers)
    channels = layers[0].out_channels
    rows, parameters, groups = [], [], []
    for place, layer in enumerate(layers):
        source = ((place - 1, 1.0),) if place else ()
        reads, makes = AxisRow(channels, source), AxisRow(channels, ((place, 1.0),))
        groups.append(GroupRow({layer.name: 1.0}, channels, 1, 1))
        cost = LayerCost(channels, channels, layer.macs, layer.parameters, True, 1024, False)
        rows.append(LayerRow(layer.name, cost, reads, makes))
        parameters.append(ParameterRow(layer.parameters, 4, (makes, reads)))
    table = ChannelTable(tuple(groups), tuple(rows), tuple(parameters), 0)
    gone = [tuple((step + place) // 2 % channels for place in range(len(layers)))
            for step in range(PLANS)]  # fmt: skip
    plans = tuple(
        plan_of(table, counts, kind="search", target=1.0 + step / 10)
        for step, counts in enumerate(gone)
    )
    plans = tuple(replace(plan, reached=max(plan.reached, plan.target)) for plan in plans)
    values = {layer.name: np.linspace(1.0, 2.0, channels) for layer in layers}
    nothing = plan_of(table, (0,) * len(layers), kind="search", target=1.0)
    store_pruning(
        project.store,
        PruningState(
            measure="l2", sensitivity=values, original=nothing, plans=plans, uniform=(),
            blocked={}, coupled={}, table=table, aligned=False, max_ratio=0.8, loss="", samples=0,
        ),
    )  # fmt: skip
    project.close()


def measure_slider(browser: Any, address: str) -> list[Row]:
    """One step of the slider by keyboard; then the mouse drags it for two seconds."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(120_000)
    page.goto(f"{address}/apps?project={NAME}&tab=search", wait_until="commit")
    page.get_by_role("button", name="Channels", exact=True).click()
    plan = page.get_by_role("img", name="Channels of each layer that stay")
    plan.locator(".barlayer .trace").nth(1).wait_for(state="attached")
    slider = page.get_by_role("slider")
    slider.focus()
    slider.press("Home")
    page.wait_for_timeout(1500)
    times = [page.evaluate(STEP_UNTIL_DONE) for _step in range(STEPS)]
    page.wait_for_timeout(1500)
    box = page.locator(".MuiSlider-rail:visible").bounding_box()
    page.evaluate(WATCH_SLIDER)
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 2, y)
    page.mouse.down()
    # A hand does not wait for the page: where it is depends on the time alone.
    start, way = time.perf_counter(), 0.0
    while way < 1.0:
        way = min(1.0, (time.perf_counter() - start) / DRAG_SECONDS)
        page.mouse.move(box["x"] + 2 + (box["width"] - 4) * way, y)
        page.wait_for_timeout(8)
    page.mouse.up()
    page.wait_for_timeout(2000)
    seen = page.evaluate("wbSlider")
    page.close()
    figures, charts = seen["figures"], seen["charts"]
    between = (figures[-1] - figures[0]) / max(1, len(figures) - 1)
    last = max(figures[-1], charts[-1]) - seen["released"]
    return [
        Row(
            "pruning: one step of the slider, 60 layers", threads(), statistics.median(times),
            "ms", 150.0, f"figures and chart drawn; slowest of {STEPS}: {max(times):.0f} ms",
        ),
        Row(
            "… dragged: between two figures", threads(), between, "ms", 100.0,
            f"{len(figures)} of {PLANS} plans, {len(charts)} charts; 10 a second are 100 ms",
        ),
        Row("… let go: all of it follows", threads(), max(0.0, last), "ms", 500.0),
    ]  # fmt: skip
