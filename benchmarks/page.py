"""The page in a real browser: the bars of specification chapter 70, section 4."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from benchmarks.harness import Row, report, threads
from benchmarks.page_job import measure_job
from benchmarks.page_paint import DRAWN, MARKS, first_paint
from benchmarks.page_prune import measure_slider, prepare_plans
from benchmarks.page_scripts import WATCH_DRAG, toggles
from workbench.engine.graph.layers import LayerInfo
from workbench.studio.project import Project

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-renderer-backgrounding",
]
TARGETS = {60: 150.0, 1000: 300.0}
IDLE_SESSIONS = 6


def layers(count: int) -> list[LayerInfo]:
    return [
        LayerInfo(
            name=f"stage{i // 20}.block{i % 20}.conv",
            type="Conv2d",
            eligible=True,
            reason="",
            order=i,
            calls=1,
            input_shape=(0, 32, 16, 16),
            output_shape=(0, 32, 16, 16),
            weight_shape=(32, 32, 3, 3),
            groups=1,
            in_channels=32,
            out_channels=32,
            has_bias=True,
            parameters=9248,
            macs=2359296,
        )
        for i in range(count)
    ]


def prepare(home: Path) -> None:
    for count in TARGETS:
        project = Project.create(
            home / "projects" / f"bench-{count}", layers=layers(count), float_bytes=count * 36992
        )
        project.store.write_measurements(
            [(x.name, 1 - 10 ** -(2 + x.order % 4), 20.0, 0.999) for x in layers(count)]
        )
        project.close()


def until(condition: Callable[[], bool], seconds: float = 60.0) -> float:
    start = time.perf_counter()
    while not condition():
        if time.perf_counter() - start > seconds:
            raise TimeoutError
        time.sleep(0.01)
    return time.perf_counter() - start


def measure(browser: Any, address: str) -> list[Row]:
    rows = []
    for count, target in TARGETS.items():
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        page = context.new_page()
        page.set_default_timeout(120_000)
        for label in ("cold", "warm"):
            page.goto(f"{address}/apps?project=bench-{count}", wait_until="commit")
            paint = page.wait_for_function(DRAWN, arg=list(MARKS)).json_value()
            if count == 60:
                figure = f"… {label}, under a debugger"
                rows.append(Row(figure, threads(), paint, "s", note="report only: page_paint.py"))
        page.wait_for_timeout(1500)
        near, all_views = toggles(page, 16)
        rows.append(
            Row(
                f"toggle round trip, {count} layers",
                threads(),
                statistics.median(all_views),
                "ms",
                target,
                f"table, top bar and chart; slowest of 15: {max(all_views):.0f} ms; table and top "
                f"bar alone {statistics.median(near):.0f} ms",
            )
        )
        if count == 1000:
            rows += drag(page)
        context.close()
    return rows


def drag(page: Any) -> list[Row]:
    """The threshold line over 1,000 layers: counts in the browser, then what follows."""
    page.wait_for_timeout(1500)  # the last toggle's chart is drawn
    line = page.locator(".shapelayer path").first.bounding_box()
    x, y = line["x"] + line["width"] * 0.62, line["y"] + line["height"] / 2
    page.evaluate(WATCH_DRAG)
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, 61):
        page.mouse.move(x, y + 75 * step / 60)
        page.wait_for_timeout(16)
    page.mouse.up()
    page.wait_for_function("wbDrag.followed > 0", timeout=30_000)
    seen = page.evaluate("wbDrag")
    changes = seen["changes"]
    between = (changes[-1] - changes[0]) / max(1, len(changes) - 1)
    return [
        Row(
            "threshold dragged over 1000 layers: between two counts", threads(), between, "ms",
            100.0, f"{len(changes)} counts; 10 a second are 100 ms",
        ),
        Row(
            "… let go: table and chart follow", threads(), seen["followed"] - seen["released"],
            "ms", 500.0,
        ),
    ]  # fmt: skip


def resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith("VmRSS:")).split()[1]) / 1024


def idle_memory(browser: Any, address: str, server: int) -> list[Row]:
    """What each further window of one project costs the server."""

    def open_page() -> Any:
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(f"{address}/apps?project=bench-60", wait_until="commit")
        page.locator(".barlayer .point").first.wait_for(state="attached")
        page.wait_for_timeout(500)
        return page

    pages = [open_page()]
    before = resident_mb(server)
    pages += [open_page() for _window in range(IDLE_SESSIONS)]
    each = (resident_mb(server) - before) / IDLE_SESSIONS
    for page in pages:
        page.close()
    note = f"mean of {IDLE_SESSIONS} windows; the server holds no model"
    return [Row("server memory of an idle session, 60 layers", threads(), each, "MB", 30.0, note)]


def main() -> None:
    home = Path(tempfile.mkdtemp())
    prepare(home)
    prepare_plans(home, layers(60))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "panel", "serve", "apps/", "--port", str(port)],
        cwd=ROOT,
        env=dict(os.environ, WORKBENCH_HOME=str(home)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://localhost:{port}"

    def answers() -> bool:
        try:
            urllib.request.urlopen(f"{address}/netron/", timeout=2).close()
        except OSError:
            return False
        return True

    try:
        until(answers)
        with sync_playwright() as playwright:
            executable = shutil.which("chromium")
            browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
            # The server's first page of all compiles its imports: that is its start, not a visit.
            first = browser.new_page()
            first.goto(f"{address}/apps?project=bench-60")
            first.locator(".tabulator-row").first.wait_for()
            first.close()
            rows = first_paint(playwright, FLAGS, f"{address}/apps?project=bench-60")
            rows += measure(browser, address)
            rows += measure_slider(browser, address)
            rows += idle_memory(browser, address, server.pid)
            rows += measure_job(browser, address, home)
            browser.close()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        shutil.rmtree(home, ignore_errors=True)
    report(rows)


if __name__ == "__main__":
    main()
