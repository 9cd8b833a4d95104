"""The worker process of a project, for tests that end it."""

from __future__ import annotations

from pathlib import Path

from workbench.studio import jobs
from workbench.studio.project import STORE_NAME
from workbench.studio.store import Store


def end_worker(folder: Path) -> None:
    """Leave no worker of this project behind: it would wait some minutes for more work."""
    if not (folder / STORE_NAME).exists():
        return
    store = Store(folder / STORE_NAME)
    jobs.end_worker(folder, store)
    store.close()
