"""Wait for a job in the foreground, as a notebook cell does."""

from __future__ import annotations

import time
from typing import Protocol

from workbench.engine.errors import Cancelled
from workbench.studio import jobtable
from workbench.studio.errors import JobFailed
from workbench.studio.project import Project
from workbench.studio.state import ErrorText

WAIT_SECONDS = 0.05


class Polled(Protocol):
    """Of a session, what waiting needs."""

    @property
    def project(self) -> Project: ...
    def poll(self) -> bool: ...
    def cancel(self) -> None: ...


def wait_for(session: Polled, job: int) -> None:
    """Poll until the job has ended, so that views follow it.

    A KeyboardInterrupt cancels the job, waits for its end and goes on upwards; what was finished
    is kept. Errors: ``JobFailed``, ``Cancelled``.
    """
    store = session.project.store
    try:
        while True:
            session.poll()
            state = jobtable.by_id(store, job)
            if state is None or not state.active:
                break
            time.sleep(WAIT_SECONDS)
    except KeyboardInterrupt:
        session.cancel()
        while (left := jobtable.by_id(store, job)) is not None and left.active:
            time.sleep(WAIT_SECONDS)
            session.poll()
        session.poll()
        raise
    session.poll()
    if state is not None and state.state == "failed":
        error = state.error or ErrorText("the job failed")
        raise JobFailed(error.summary, where=state.kind, hint=error.hint, wrong=error.wrong)
    if state is not None and state.state == "cancelled":
        raise Cancelled("the job was cancelled; what it finished is kept", where=state.kind)
