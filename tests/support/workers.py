"""The worker process of a project, for tests that end it."""

from __future__ import annotations

from pathlib import Path

from workbench.studio.jobs import kill_worker
from workbench.studio.project import STORE_NAME
from workbench.studio.store import Store


def end_worker(folder: Path) -> None:
    """Leave no worker of this project behind: it would wait some minutes for more work."""
    if not (folder / STORE_NAME).exists():
        return
    store = Store(folder / STORE_NAME)
    row = store.connection.execute("SELECT pid, pid_created FROM worker").fetchone()
    store.close()
    if row:
        kill_worker(int(row[0]), float(row[1]))
