"""First useful paint as a user has it: in a Chromium that no debugger is attached to.

With the inspector attached V8 does the work of plotly.js's giant function several times. So tabs
are opened over HTTP, and the page's own marks are read after it has drawn chart and table.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import Row, threads

PROFILES = 3
VISITS = 4
"""Of one browser: the first is cold, at the second it stores what it has compiled."""

START_SECONDS = 60.0
DRAW_SECONDS = 5.0
PAUSE_SECONDS = 1.0
MARKS = ("wb-table-drawn", "wb-chart-drawn")
DRAWN = """
(names) => {
  const found = names.map((name) => performance.getEntriesByName(name)[0]);
  return found.every(Boolean) ? Math.max(...found.map((mark) => mark.startTime)) / 1000 : null;
}
"""


class Browser:
    """Chromium with an empty profile; ``visit`` opens a page in a new tab."""

    def __init__(self, playwright: Any, flags: Sequence[str]) -> None:
        self._playwright = playwright
        self._profile = tempfile.mkdtemp()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._address = f"http://127.0.0.1:{port}"
        executable = shutil.which("chromium") or playwright.chromium.executable_path
        own = [f"--user-data-dir={self._profile}", f"--remote-debugging-port={port}"]
        self._process = subprocess.Popen(
            [executable, "--headless=new", "--no-first-run", "--window-size=1280,800", *flags,
             *own, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            if time.monotonic() > end:
                self.close()
                raise TimeoutError("Chromium did not start")
            time.sleep(0.05)
        time.sleep(PAUSE_SECONDS)

    def _answers(self) -> bool:
        try:
            self._ask("version", "GET")
        except OSError:
            return False
        return True

    def _ask(self, what: str, method: str) -> bytes:
        request = urllib.request.Request(f"{self._address}/json/{what}", method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bytes(answer.read())

    def visit(self, url: str) -> float:
        """Seconds from the navigation to chart and table drawn."""
        tab = json.loads(self._ask(f"new?{url}", "PUT"))["id"]
        time.sleep(DRAW_SECONDS)
        debugger = self._playwright.chromium.connect_over_cdp(self._address)
        page = next(p for p in debugger.contexts[0].pages if p.url == url)
        # Nearly always there already; if not, what is left takes the longer for being watched.
        seconds = float(page.wait_for_function(DRAWN, arg=list(MARKS)).json_value())
        debugger.close()
        self._ask(f"close/{tab}", "GET")
        time.sleep(PAUSE_SECONDS)
        return seconds

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)


def first_paint(playwright: Any, flags: Sequence[str], url: str) -> list[Row]:
    """The page of 60 layers, visited again and again by browsers that were new at first."""
    visits: list[list[float]] = []
    for _profile in range(PROFILES):
        browser = Browser(playwright, flags)
        try:
            visits.append([browser.visit(url) for _visit in range(VISITS)])
        finally:
            browser.close()
    cold = [found[0] for found in visits]
    second = [found[1] for found in visits]
    warm = [seconds for found in visits for seconds in found[2:]]
    return [
        _row("cold", cold, 3.0, "an empty profile"),
        _row("warm, second visit", second, 1.5, "files kept, code compiled anew"),
        _row("warm", warm, 1.5, "later visits"),
    ]


def _row(label: str, times: list[float], bound: float, note: str) -> Row:
    spread = f"{note}; chart and table drawn; {min(times):.2f}–{max(times):.2f} s"
    return Row(
        f"first useful paint, {label}, 60 layers", threads(), statistics.median(times), "s", bound,
        spread,
    )  # fmt: skip
