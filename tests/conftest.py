"""One Chromium for a test process, and the order of the files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workbench.engine.export import timing

# The tests read English text, whatever the locale of the machine.
os.environ["WORKBENCH_LANGUAGE"] = "en"
# A worker that gives way would wait for the tests beside it.
os.environ["WORKBENCH_WORKER_NICE"] = "0"
# Each of several files is run the fewest times: nothing in the tests is about how fast it was.
timing.SECONDS = 0.0

# Folders of tests that take as long as a browser.
LONG = ("notebooks", "repository")

# A page in the background must go on painting, or every wait for it is a second longer.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-renderer-backgrounding",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a browser and the notebooks first: a long file at the end leaves a core idle."""
    long = {item.path for item in items if item.get_closest_marker("browser")}
    items.sort(key=lambda item: item.path not in long and item.path.parent.name not in LONG)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium: the system's, else Playwright's own. Without one a test is skipped, in CI fails."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = shutil.which("chromium") or playwright.chromium.executable_path
        if not Path(found).exists():
            missing = "there is no Chromium on this machine: run `make browser`"
            if os.environ.get("CI"):
                pytest.fail(missing + "; in CI browser tests do not skip", pytrace=False)
            pytest.skip(missing)
        chromium = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield chromium
        chromium.close()
