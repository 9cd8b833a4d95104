"""Take the pictures in ``docs/images`` from the running app: every tab, light and dark."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
PROJECT = "digits-mobilenet-hard"
LINEAR_PROJECT = "digits-vit"
PRUNED_PROJECT = "digits-resnet"
TABS = ("Model", "Layers", "Inspect", "Search", "Train", "Export", "History", "Code")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def finished(page: Any) -> None:
    """Wait until the running job has ended."""
    cancel = page.get_by_role("button", name="Cancel")
    cancel.wait_for(timeout=30_000)
    cancel.wait_for(state="hidden", timeout=600_000)
    page.wait_for_timeout(1500)


def every_tab(page: Any, theme: str) -> None:
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(6000 if tab == "Export" else 4000)
        page.screenshot(path=IMAGES / f"{tab.lower()}-{theme}.png")


def story(page: Any) -> None:
    page.get_by_role("tab", name="Layers").click()
    page.locator(".barlayer .point").first.wait_for(state="attached", timeout=120_000)
    page.get_by_role("button", name="Analyse", exact=True).first.click()
    finished(page)
    page.screenshot(path=IMAGES / "analysed.png")
    # The worst layer: compared at once, because nobody has looked at it before.
    page.get_by_role("button", name="worst k", exact=True).click()
    page.get_by_role("button", name="Inspect", exact=True).click()
    page.get_by_text("use this").first.wait_for(timeout=120_000)
    page.get_by_role("tab", name="Layers").click()
    page.get_by_role("button", name="none", exact=True).click()
    page.get_by_role("button", name="Auto-calibrate", exact=True).first.click()
    finished(page)
    page.get_by_role("tab", name="Train", exact=True).click()
    page.get_by_role("button", name="Train", exact=True).click()
    finished(page)
    page.get_by_role("button", name="Export", exact=True).first.click()
    finished(page)
    every_tab(page, "light")
    page.get_by_role("button", name="Toggle theme").click()
    page.mouse.move(640, 790)  # no tooltip in the pictures
    page.wait_for_timeout(2000)
    every_tab(page, "dark")


def formats(page: Any) -> None:
    """Number formats, on a network of Linear layers."""
    page.get_by_role("tab", name="Formats").click()
    page.get_by_role("button", name="Measure formats").click()
    page.get_by_text("quantise as").wait_for(timeout=120_000)
    for theme in ("light", "dark"):
        page.wait_for_timeout(2500)
        page.screenshot(path=IMAGES / f"formats-{theme}.png")
        page.get_by_role("button", name="Toggle theme").click()
        page.mouse.move(640, 790)


def smaller(page: Any) -> None:
    """Channels: before a measurement, while it runs, measured, and after a pruning."""
    page.get_by_role("tab", name="Search").click()
    page.get_by_role("button", name="Channels").click()
    page.get_by_role("button", name="Measure sensitivity").wait_for()
    page.get_by_text("22 of 22").wait_for(timeout=120_000)  # the model is open
    page.wait_for_timeout(1500)
    page.screenshot(path=IMAGES / "channels-empty.png")
    page.get_by_role("button", name="Measure sensitivity").click()
    page.get_by_role("button", name="Cancel").wait_for(timeout=30_000)
    page.wait_for_timeout(1000)
    page.screenshot(path=IMAGES / "channels-running.png")
    finished(page)
    page.get_by_role("button", name="Prune", exact=True).click()
    finished(page)
    page.get_by_text("Done").first.wait_for()
    for theme in ("light", "dark"):
        page.wait_for_timeout(4000)
        page.screenshot(path=IMAGES / f"channels-{theme}.png")
        page.get_by_role("button", name="Toggle theme").click()
        page.mouse.move(640, 790)
    page.get_by_role("button", name="Decomposition").click()
    page.get_by_role("button", name="Dry run").click()
    page.get_by_text("the table says why").wait_for(timeout=120_000)
    page.wait_for_timeout(1500)
    page.screenshot(path=IMAGES / "decomposition.png")
    page.get_by_role("tab", name="Export").click()
    page.wait_for_timeout(8000)
    page.screenshot(path=IMAGES / "before-after.png")


def own_model(page: Any) -> None:
    page.get_by_role("button", name="Open a project").click()
    page.get_by_role("button", name="Upload files").wait_for()
    page.wait_for_timeout(1500)
    page.screenshot(path=IMAGES / "open.png")


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    home = tempfile.mkdtemp()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "panel",
            "serve",
            "apps/",
            "--address",
            "localhost",
            "--port",
            str(port),
        ],
        cwd=ROOT,
        env=dict(os.environ, WORKBENCH_HOME=home),
        start_new_session=True,
    )
    address = f"http://localhost:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/netron/", timeout=2).close()
                break
            except OSError:
                time.sleep(0.2)
        with sync_playwright() as playwright:
            chromium = shutil.which("chromium")
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(60_000)
            page.goto(f"{address}/apps?project={PROJECT}")
            story(page)
            page.goto(f"{address}/apps?project={LINEAR_PROJECT}")
            formats(page)
            own_model(page)
            page.goto(f"{address}/apps?project={PRUNED_PROJECT}")
            smaller(page)
            browser.close()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
