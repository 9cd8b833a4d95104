"""Job managers: a thread of this process (Jupyter), or the project's one worker process (app)."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from workbench.engine.errors import WorkbenchError, WrongState, WrongValue
from workbench.studio import jobtable, measuring, results
from workbench.studio.measuring import Measuring
from workbench.studio.project import STORE_NAME, Project
from workbench.studio.state import JOB_KINDS, ErrorText, JobState
from workbench.studio.store import Store

if TYPE_CHECKING:
    from workbench.engine.analysis.histograms import LayerHistogram
    from workbench.studio.sources import LiveSource
    from workbench.studio.workspace import Workspace

CANCEL_GRACE = 0.6
"""Seconds a worker has to stop by itself before it is ended."""

WORKER_LOG = "worker.log"

log = logging.getLogger("workbench.studio.jobs")


class JobManager(ABC):
    """Starts and ends the jobs of one project. Its state is in the project, not in it."""

    runner = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / STORE_NAME)

    def submit(self, kind: str, args: Mapping[str, Any]) -> int:
        """Queue a job and see that somebody runs it; its number. ``JobActive`` if one is active."""
        if kind not in JOB_KINDS:
            raise WrongValue(f"there is no job {kind!r}", where="job")
        active = jobtable.latest(self.store)
        if active is not None and active.active:
            self.look_after(active)
        job = jobtable.submit(self.store, kind, args, runner=self.runner)
        self._begin(job)
        return job

    @abstractmethod
    def _begin(self, job: int) -> None: ...

    def cancel(self, job: JobState) -> None:
        """Ask for the end of a job, whoever runs it; a worker is ended if it must be.

        A thread of a notebook or script stops at its next step: its process is the user's.
        """
        if not jobtable.request_cancel(self.store, job.id):
            threading.Thread(
                target=_end_if_it_must_be, args=(self.folder, job.id), daemon=True
            ).start()

    @abstractmethod
    def histogram(self, name: str) -> LayerHistogram | None: ...

    @property
    def measures(self) -> bool:
        """Whether edits can be evaluated in the background: not in the process of a notebook."""
        return False

    def measure(self, config_hash: str, *, asked: bool = False) -> None:
        """Have this configuration evaluated behind everything else; see ``measuring``."""
        raise WrongState(
            "edits are evaluated in the background only where a worker process has the model",
            where="measure",
            hint="Use evaluate().",
        )

    def look_after_measuring(self, seen: Measuring) -> bool:
        """See that a wanted evaluation has a process; True if it was lost, and that is noted."""
        return False

    def look_after(self, job: JobState) -> bool:
        """Is the process of an active job still there?  True if it was not, and that is noted.

        A job that waits for a worker process gets one.
        """
        owner = jobtable.owner(self.store, job.id)
        if owner is not None and jobtable.is_alive(owner[0], owner[1]):
            return False
        if owner is None:
            state = jobtable.by_id(self.store, job.id)
            return state is not None and state.active and self._look_after_queued(job)
        reason = death_of(self.folder, owner[0]) if owner[2] == "worker" else ""
        return jobtable.fail_if_dead(self.store, job.id, reason=reason)

    def _look_after_queued(self, job: JobState) -> bool:
        if worker_process(self.store) is not None:
            return False
        child = _children.get(self.folder)
        if child is not None and child.poll() is None:
            return False
        if child is not None and child.returncode != 0 and not _was_worker(self.store, child.pid):
            del _children[self.folder]
            error = ErrorText(
                "the worker process could not start, the project is safe",
                "The details show its last words. Start the job again when it is put right.",
                _log_tail(self.folder),
            )
            return jobtable.finish(self.store, job.id, "failed", error)
        ensure_worker(self.folder, self.store)
        return False

    def release(self) -> None:
        """The session is gone; jobs go on."""
        self.store.close()


class ThreadManager(JobManager):
    """Jobs in a thread of this process, where the live model is."""

    runner = "thread"

    def __init__(self, folder: Path, live: LiveSource | None = None) -> None:
        super().__init__(folder)
        self.workspace = shared_workspace(folder, live)

    def _begin(self, job: int) -> None:
        threading.Thread(
            target=_run_in_thread, args=(self.workspace, job), name=f"job {job}", daemon=True
        ).start()

    def look_after(self, job: JobState) -> bool:
        """As for any job; one whose end could not be written, as on a full disk, has failed."""
        if (self.workspace.project.folder, job.id) not in _lost:
            return super().look_after(job)
        error = ErrorText(
            "the job could not write its end, the project is safe",
            "What was finished before is kept. Free some space on the disk and start it again.",
        )
        return jobtable.finish(self.store, job.id, "failed", error)

    def histogram(self, name: str) -> LayerHistogram | None:
        from workbench.studio.inspecting import compute_histogram

        if not self.workspace.lock.acquire(timeout=0.05):
            return None
        try:
            return compute_histogram(self.workspace, name)
        finally:
            self.workspace.lock.release()


def _run_in_thread(workspace: Workspace, job: int) -> None:
    from workbench.studio.running import run_job

    try:
        claimed, kind, args = jobtable.claim(workspace.project.store, job, runner="thread")
        if claimed:
            run_job(workspace, claimed, kind, args)
    except WorkbenchError as error:
        _lost.add((workspace.project.folder, job))
        log.warning("job %d could not be kept: %s", job, error)


_lost: set[tuple[Path, int]] = set()
"""Jobs of this process whose thread is gone, and whose end is not in the table."""

_workspaces: WeakValueDictionary[Path, Workspace] = WeakValueDictionary()
_workspaces_lock = threading.Lock()


def shared_workspace(folder: Path, live: LiveSource | None) -> Workspace:
    """One workspace a project and process, so that two sessions share the model."""
    from workbench.studio.workspace import Workspace

    key = folder.resolve()
    with _workspaces_lock:
        found = _workspaces.get(key)
        if found is None:
            found = _workspaces[key] = Workspace(Project.open(folder), live)
        elif live is not None:
            found.replace_live(live)
        return found


class WorkerManager(JobManager):
    """Jobs in ``python -m workbench.studio.worker``, one process per project."""

    runner = "worker"

    def _begin(self, job: int) -> None:
        ensure_worker(self.folder, self.store)

    def histogram(self, name: str) -> LayerHistogram | None:
        known = self.store.connection.execute(
            "SELECT time FROM requests WHERE name = ?", (name,)
        ).fetchone()
        if known is None and self.store.get("record_layers"):
            with self.store.write() as connection:
                connection.execute(
                    "INSERT OR REPLACE INTO requests VALUES (?, ?)", (name, time.time())
                )
        job = jobtable.latest(self.store)
        if self.store.get("record_layers") and not (job is not None and job.active):
            ensure_worker(self.folder, self.store)
        return results.stored_histogram(self.store, name)

    @property
    def measures(self) -> bool:
        return True

    def measure(self, config_hash: str, *, asked: bool = False) -> None:
        if measuring.ask(self.store, config_hash, asked=asked):
            ensure_worker(self.folder, self.store)

    def look_after_measuring(self, seen: Measuring) -> bool:
        if worker_process(self.store) is not None:
            return False
        child = _children.get(self.folder)
        if child is not None and child.poll() is None:
            return False
        if seen.state == "running" or (child is not None and child.returncode != 0):
            measuring.step(self.store, seen.config_hash, "failed", error=measuring.DIED)
            return True
        ensure_worker(self.folder, self.store)
        return False


_children: dict[Path, subprocess.Popen[bytes]] = {}
_children_lock = threading.Lock()


def worker_process(store: Store) -> int | None:
    """The number of the project's living worker process."""
    row = store.connection.execute("SELECT pid, pid_created FROM worker").fetchone()
    if row is None or not jobtable.is_alive(int(row[0]), float(row[1])):
        return None
    return int(row[0])


def _was_worker(store: Store, pid: int) -> bool:
    """Had this process got as far as being the project's worker?"""
    row = store.connection.execute("SELECT pid FROM worker").fetchone()
    return row is not None and int(row[0]) == pid


def ensure_worker(folder: Path, store: Store) -> None:
    """Start the project's worker process unless there is one."""
    with _children_lock:
        child = _children.get(folder)
        if worker_process(store) is not None:
            return
        if child is not None and child.poll() is None:
            if not _was_worker(store, child.pid):
                return  # it is still starting
            _reap(child)
        project = Project.open(folder)
        environment = dict(os.environ)
        environment["OMP_NUM_THREADS"] = str(project.settings.threads)
        project.close()
        with (folder / WORKER_LOG).open("wb") as stream:
            _children[folder] = subprocess.Popen(
                [sys.executable, "-m", "workbench.studio.worker", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stream,
                env=environment,
                start_new_session=True,
            )


def _reap(child: subprocess.Popen[bytes]) -> int | None:
    """The exit code of a child that is gone or about to be: its threads may outlive it a moment."""
    try:
        return child.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        return None


def death_of(folder: Path, pid: int) -> str:
    """Why a worker that this process started is gone, in words; empty if not known."""
    child = _children.get(folder)
    if child is None or child.pid != pid:
        return ""
    code = _reap(child)
    if code is None:
        return ""
    if code == -signal.SIGKILL:
        return "it was killed (signal 9), as happens when memory runs out"
    if code < 0:
        return f"it was ended by signal {-code} ({signal.Signals(-code).name})"
    return f"it ended with exit code {code}"


def _end_if_it_must_be(folder: Path, job: int) -> None:
    """End the worker process when a cancelled job is still running after the grace time."""
    store = Store(folder / STORE_NAME)
    try:
        if jobtable.runner(store, job) != "worker":
            return
        end = time.monotonic() + CANCEL_GRACE
        while time.monotonic() < end:
            state = jobtable.by_id(store, job)
            if state is None or not state.active:
                return
            time.sleep(0.03)
        owner = jobtable.owner(store, job)
        if jobtable.finish(store, job, "cancelled") and owner is not None:
            kill_worker(owner[0], owner[1])
    finally:
        store.close()


def kill_worker(pid: int, created: float) -> None:
    """End a worker and its children; only if the number still means that process."""
    if not jobtable.is_alive(pid, created):
        return
    try:
        if hasattr(os, "killpg") and os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def end_worker(folder: Path, store: Store) -> None:
    """End the project's worker process, whatever it does; for a project that is to be deleted."""
    row = store.connection.execute("SELECT pid, pid_created FROM worker").fetchone()
    if row is not None:
        kill_worker(int(row[0]), float(row[1]))
    with _children_lock:
        child = _children.pop(folder, None)
    if child is not None:
        _reap(child)


def _log_tail(folder: Path) -> str:
    try:
        return (folder / WORKER_LOG).read_text(errors="replace")[-4000:]
    except OSError:
        return ""
