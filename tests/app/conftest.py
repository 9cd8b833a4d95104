"""One real server and one real Chromium for the browser tests; view tests need neither."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-renderer-backgrounding",
]


@pytest.fixture(scope="session")
def workbench_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def server(workbench_home: Path) -> Iterator[str]:
    """Address of ``panel serve apps/`` on a free port with an empty workspace."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (workbench_home / "server.log").open("wb")
    environment = {**os.environ, "WORKBENCH_HOME": str(workbench_home), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "panel", "serve", "apps/", "--port", str(port)],
        cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    address = f"http://localhost:{port}"
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"{address}/netron/", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None, (workbench_home / "server.log").read_text()
                time.sleep(0.2)
        yield address
    finally:
        # A worker outlives a gentle end of its server on purpose; a test must not leave any.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    executable = str(CHROMIUM) if CHROMIUM.exists() else shutil.which("chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser: Any, server: str) -> Iterator[Callable[..., Any]]:
    """``new_page(project)`` opens the workbench and waits for its table.

    Requests that leave the machine and script errors fail the test at its end.
    """
    contexts: list[Any] = []
    faults: list[str] = []

    def request(request: Any) -> None:
        if not request.url.startswith((server, server.replace("http", "ws"), "data:", "blob:")):
            faults.append(f"request to {request.url}")

    def open_page(project: str, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("request", request)
        page.on("pageerror", lambda error: faults.append(f"script error: {error}"))
        page.goto(f"{server}/apps?project={project}")
        page.locator(".tabulator-row").first.wait_for()
        page.locator(".barlayer .point").first.wait_for(state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def wait_until(condition: Callable[[], bool], *, seconds: float = 10.0, what: str = "") -> None:
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


def is_ticked(page: Any, name: str) -> bool:
    return cell(page, name, "quant_enable").get_attribute("aria-checked") == "true"
