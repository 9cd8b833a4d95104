"""The page while a search runs: toggles, a reload, and Cancel, in a real browser."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, threads
from benchmarks.page_paint import DRAWN, MARKS
from benchmarks.page_scripts import PRESS_UNTIL_GONE, toggles
from workbench.studio import open_session
from workbench.studio.jobs import kill_worker

EXAMPLE = "digits-mobilenet-hard"
TOGGLES = 9


def _toggles(page: Any) -> float:
    return statistics.median(toggles(page, TOGGLES + 1)[1])


def measure_job(browser: Any, address: str, home: Path) -> list[Row]:
    """Bars of a page whose project searches meanwhile, in the project's own worker process."""
    folder = home / "projects" / EXAMPLE
    session = open_session(EXAMPLE, project=folder, in_process=False, wait=True)
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(120_000)
    try:
        page.goto(f"{address}/apps?project={EXAMPLE}")
        page.locator(".tabulator-row").first.wait_for()
        page.locator(".barlayer .point").first.wait_for(state="attached")
        page.wait_for_timeout(1500)
        idle = _toggles(page)

        # The longest of the searches: it must outlive what is measured beside it.
        session.auto_calibrate(max_loss=0.0, strategy="Greedy", sensitivity="EndToEnd", wait=False)
        cancel = page.get_by_role("button", name="Cancel", exact=True)
        cancel.wait_for(timeout=60_000)
        page.wait_for_timeout(2000)
        busy = _toggles(page)
        running = cancel.is_visible()

        start = time.perf_counter()
        page.reload(wait_until="commit")
        page.wait_for_function(DRAWN, arg=list(MARKS))
        cancel.wait_for()
        reload = time.perf_counter() - start

        page.wait_for_timeout(1500)
        running = running and cancel.is_visible()
        cancelled = page.evaluate(PRESS_UNTIL_GONE, "Cancel") / 1000
        session.poll()
        state = session.job.state if session.job else "gone"
    finally:
        page.close()
        row = session.project.store.connection.execute(
            "SELECT pid, pid_created FROM worker"
        ).fetchone()
        session.dispose()
        if row:
            kill_worker(int(row[0]), float(row[1]))
    told = "" if running and state == "cancelled" else f"; the job was {state} too early"
    return [
        Row(
            "toggle while a search runs ÷ idle", threads(), busy / idle, "x", 2.0,
            f"{EXAMPLE}: {busy:.0f} and {idle:.0f} ms{told}",
        ),
        Row(
            "reload during a job: table, chart and job are back", threads(), reload, "s", 3.0,
            f"the search goes on{told}",
        ),
        Row(
            "cancel, until the page says so", threads(), cancelled, "s", 1.0,
            f"in the middle of a trial{told}",
        ),
    ]  # fmt: skip
