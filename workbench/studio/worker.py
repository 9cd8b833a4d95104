"""The project's worker process: ``python -m workbench.studio.worker FOLDER``.

It holds the model, takes queued jobs from the project one after another, and goes when there was
nothing to do for some minutes.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.engine.errors import WorkbenchError
from workbench.studio import jobtable, measuring
from workbench.studio.project import Project
from workbench.studio.store import Store

if TYPE_CHECKING:
    from workbench.studio.background import Background

log = logging.getLogger("workbench.studio.worker")

IDLE_SECONDS = float(os.environ.get("WORKBENCH_WORKER_IDLE", "300"))
NICENESS = int(os.environ.get("WORKBENCH_WORKER_NICE", "5"))
"""Of the process from its first long job on: an edit is answered nearly as fast as without one."""

LOOK_SECONDS = 0.05
BEAT_SECONDS = 1.0
GIVE_WAY_SECONDS = 0.6
"""What a background evaluation has to end by itself before the process begins anew."""


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m workbench.studio.worker FOLDER\n")
        return 2
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    project = Project.open(Path(arguments[0]))
    if not take_over(project.store):
        return 0
    # Everything heavy is imported after the lock, so that a second worker is gone at once.
    from workbench.studio.workspace import Workspace

    threading.Thread(target=_beat, args=(project,), daemon=True).start()
    serve(Workspace(project))
    return 0


def step_back() -> None:
    """Lower the priority of this process and its threads to ``NICENESS``, for good."""
    if not hasattr(os, "setpriority") or os.getpgid(0) != os.getpid():
        return
    niceness = max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0))
    os.setpriority(os.PRIO_PGRP, 0, niceness)
    # Where Linux shares the processor out by session, niceness counts within one only.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(niceness))


def take_over(store: Store) -> bool:
    """Become the project's worker; False if there is a living one."""
    pid = os.getpid()
    with store.write() as connection:
        row = connection.execute("SELECT pid, pid_created FROM worker").fetchone()
        if row is not None and jobtable.is_alive(int(row[0]), float(row[1])):
            return False
        connection.execute("DELETE FROM worker")
        connection.execute(
            "INSERT INTO worker VALUES (1, ?, ?, ?)", (pid, jobtable.created_at(pid), time.time())
        )
    return True


def leave(store: Store) -> bool:
    """Stop being the worker, unless a job has come in the meantime."""
    with store.write() as connection:
        cursor = connection.execute(
            "DELETE FROM worker WHERE pid = ? AND NOT EXISTS "
            "(SELECT 1 FROM jobs WHERE state = 'queued' AND runner = 'worker')",
            (os.getpid(),),
        )
        return cursor.rowcount == 1


def serve(workspace: object) -> None:
    """Run jobs until nothing has happened for ``IDLE_SECONDS`` or the folder is gone."""
    from workbench.studio.background import Background
    from workbench.studio.running import run_job
    from workbench.studio.workspace import Workspace

    assert isinstance(workspace, Workspace)
    store = workspace.project.store
    background = Background(workspace)
    last = time.monotonic()
    while True:
        if jobtable.is_queued(store, runner="worker"):
            if not background.stop(GIVE_WAY_SECONDS):
                if background.is_loading:
                    continue
                begin_anew(workspace.project)
            measuring.drop(store)
            job, kind, args = jobtable.claim(store, runner="worker")
            if job:
                if kind != "open":  # somebody waits for that one, with an empty page
                    step_back()
                run_job(workspace, job, kind, args)
            last = time.monotonic()
        elif _serve_request(workspace, background):
            last = time.monotonic()
        elif not (workspace.project.folder / "project.toml").exists():
            return
        elif background.tend():
            last = time.monotonic()
            time.sleep(LOOK_SECONDS)
        elif time.monotonic() - last > IDLE_SECONDS:
            if leave(store):
                return
            last = time.monotonic()
        else:
            time.sleep(LOOK_SECONDS)


def begin_anew(project: Project) -> None:
    """Become a new process: what holds the model does not let go of it, and a job waits.

    The number of the process stays, so that whoever started it still knows it.
    """
    log.info("a background evaluation did not end; beginning anew")
    with project.store.write() as connection:
        connection.execute("DELETE FROM worker WHERE pid = ?", (os.getpid(),))
    sys.stderr.flush()
    folder = str(project.folder)
    os.execv(sys.executable, [sys.executable, "-m", "workbench.studio.worker", folder])


def _serve_request(workspace: object, background: Background) -> bool:
    """Compute one layer's histograms if a window asks for it."""
    from workbench.studio.inspecting import compute_histogram
    from workbench.studio.workspace import Workspace

    assert isinstance(workspace, Workspace)
    store = workspace.project.store
    row = store.connection.execute("SELECT name FROM requests ORDER BY time LIMIT 1").fetchone()
    if row is None or not background.stop(LOOK_SECONDS):
        return False
    try:
        with workspace.lock:
            compute_histogram(workspace, row[0])
    except WorkbenchError as error:
        log.warning("no histogram of %s: %s", row[0], error)
    finally:
        with store.write() as connection:
            connection.execute("DELETE FROM requests WHERE name = ?", (row[0],))
    return True


def _beat(project: Project) -> None:
    """Say once a second that this process lives, without waking the windows up."""
    while True:
        project.store.connection.execute(
            "UPDATE worker SET heartbeat = ? WHERE pid = ?", (time.time(), os.getpid())
        )
        time.sleep(BEAT_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
