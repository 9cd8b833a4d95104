"""Rows of the ``jobs`` table: one job of a project at a time, whoever runs it."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import psutil

from workbench.studio.errors import JobActive
from workbench.studio.state import ErrorText, JobState
from workbench.studio.store import Store

_FIELDS = "id, kind, state, done, total, message, started, seconds_left, error, pause, cancel"


def submit(store: Store, kind: str, args: Mapping[str, Any], *, runner: str) -> int:
    """A new queued job. ``runner`` is ``worker`` or ``thread``.

    Errors: ``JobActive`` while another one is queued or running.
    """
    try:
        with store.write() as connection:
            cursor = connection.execute(
                "INSERT INTO jobs (kind, args, state, active, runner, queued, pid, pid_created) "
                "VALUES (?, ?, 'queued', 1, ?, ?, ?, ?)",
                (kind, json.dumps(dict(args)), runner, time.time(), *_self(runner)),
            )
            return int(cursor.lastrowid or 0)
    except sqlite3.IntegrityError:
        job = latest(store)
        what = f"{job.kind} ({job.state})" if job else "another one"
        hint = "Wait for it or cancel it; one job runs per project at a time."
        who = owner(store, job.id) if job else None
        if who is not None and who[2] == "thread" and who[0] != os.getpid():
            hint = (
                f"It runs in another notebook or script, process {who[0]}. Wait for it or cancel "
                "it, here or there; one job runs per project at a time."
            )
        raise JobActive(
            f"a job is at work in this project already: {what}", where="job", hint=hint
        ) from None


def _self(runner: str) -> tuple[int | None, float | None]:
    """A thread's job can only be run by the process that queued it."""
    if runner != "thread":
        return None, None
    return os.getpid(), created_at(os.getpid())


def is_queued(store: Store, *, runner: str) -> bool:
    """Does a job wait for somebody to run it?"""
    query = "SELECT 1 FROM jobs WHERE state = 'queued' AND runner = ? LIMIT 1"
    return store.connection.execute(query, (runner,)).fetchone() is not None


def claim(store: Store, job: int | None = None, *, runner: str) -> tuple[int, str, dict[str, Any]]:
    """Take the queued job for this process: (id, kind, arguments); id 0 if there is none."""
    where, values = ("AND id = ?", (runner, job)) if job is not None else ("", (runner,))
    query = f"SELECT id, kind, args FROM jobs WHERE state = 'queued' AND runner = ? {where}"
    if store.connection.execute(query, values).fetchone() is None:
        return 0, "", {}
    with store.write() as connection:
        row = connection.execute(query, values).fetchone()
        if row is None:
            return 0, "", {}
        connection.execute(
            "UPDATE jobs SET state = 'running', pid = ?, pid_created = ?, started = ? WHERE id = ?",
            (os.getpid(), created_at(os.getpid()), time.time(), row[0]),
        )
    return int(row[0]), str(row[1]), dict(json.loads(row[2]))


def finish(store: Store, job: int, state: str, error: ErrorText | None = None) -> bool:
    """End a job unless somebody ended it before; True if this call did."""
    with store.write() as connection:
        return end_job(connection, job, state, error)


def end_job(
    connection: sqlite3.Connection, job: int, state: str, error: ErrorText | None = None
) -> bool:
    cursor = connection.execute(
        "UPDATE jobs SET state = ?, active = NULL, ended = ?, seconds_left = NULL, error = ? "
        "WHERE id = ? AND active = 1",
        (state, time.time(), json.dumps(asdict(error)) if error else None, job),
    )
    return cursor.rowcount == 1


def request_cancel(store: Store, job: int) -> bool:
    """Ask for the end of a job; one that nobody has begun yet ends here and now."""
    with store.write() as connection:
        connection.execute(
            "UPDATE jobs SET cancel = 1, pause = 0 WHERE id = ? AND active = 1", (job,)
        )
        cursor = connection.execute(
            "UPDATE jobs SET state = 'cancelled', active = NULL, ended = ? "
            "WHERE id = ? AND state = 'queued'",
            (time.time(), job),
        )
        return cursor.rowcount == 1


def request_pause(store: Store, job: int, on: bool) -> None:
    """Ask a job to hold at its next step, or to go on."""
    with store.write() as connection:
        connection.execute(
            "UPDATE jobs SET pause = ? WHERE id = ? AND active = 1 AND cancel = 0", (int(on), job)
        )


def pause_requested(store: Store, job: int) -> bool:
    row = store.connection.execute("SELECT pause FROM jobs WHERE id = ?", (job,)).fetchone()
    return row is not None and bool(row[0])


def cancel_requested(store: Store, job: int) -> bool:
    """True when this job shall stop, or has been ended from outside."""
    row = store.connection.execute(
        "SELECT cancel, active FROM jobs WHERE id = ?", (job,)
    ).fetchone()
    return row is None or bool(row[0]) or not row[1]


def latest(store: Store) -> JobState | None:
    """The job that is active, or else the last one."""
    row = store.connection.execute(
        f"SELECT {_FIELDS} FROM jobs ORDER BY id DESC LIMIT 1"
    ).fetchone()
    return None if row is None else _state(row)


def by_id(store: Store, job: int) -> JobState | None:
    row = store.connection.execute(f"SELECT {_FIELDS} FROM jobs WHERE id = ?", (job,)).fetchone()
    return None if row is None else _state(row)


def owner(store: Store, job: int) -> tuple[int, float, str] | None:
    """(pid, its start time, runner) of an active job that belongs to a process."""
    row = store.connection.execute(
        "SELECT pid, pid_created, runner FROM jobs WHERE id = ? AND active = 1", (job,)
    ).fetchone()
    return None if row is None or row[0] is None else (int(row[0]), float(row[1]), str(row[2]))


def runner(store: Store, job: int) -> str:
    """Who runs a job, or would: ``worker`` or ``thread``; empty if there is no such job."""
    row = store.connection.execute("SELECT runner FROM jobs WHERE id = ?", (job,)).fetchone()
    return "" if row is None else str(row[0])


def fail_if_dead(store: Store, job: int, *, reason: str = "") -> bool:
    """Mark an active job failed when its process is gone; True if it did."""
    who = owner(store, job)
    if who is None or is_alive(who[0], who[1]):
        return False
    what = "the worker died" if who[2] == "worker" else "the process that ran the job ended"
    error = ErrorText(
        summary=f"{what}: {reason or 'it was ended from outside'}, the project is safe",
        hint="What was measured before is kept. Start the job again; if it was ended for lack of "
        "memory, use fewer or smaller calibration batches.",
        details=f"process {who[0]}",
    )
    return finish(store, job, "failed", error)


def created_at(pid: int) -> float:
    """When a process started; with its number it names a process for good."""
    return float(psutil.Process(pid).create_time())


def is_alive(pid: int, created: float) -> bool:
    try:
        process = psutil.Process(pid)
        same = abs(float(process.create_time()) - created) < 1.0
        return same and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _state(row: tuple[Any, ...]) -> JobState:
    error = ErrorText(**json.loads(row[8])) if row[8] else None
    state = str(row[2])
    if state == "running":
        state = "cancelling" if row[10] else "paused" if row[9] else state
    return JobState(
        id=int(row[0]),
        kind=str(row[1]),
        state=state,
        done=int(row[3]),
        total=int(row[4]),
        message=str(row[5]),
        started=float(row[6] or 0.0),
        seconds_left=row[7] if state == "running" else None,
        error=error,
    )
