"""Wait for what a session's job does, polling as a view would."""

from __future__ import annotations

import time
from collections.abc import Callable

from workbench.studio.session import Session


def wait(session: Session, condition: Callable[[], bool], seconds: float = 60.0) -> float:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, session.job
        session.poll()
        time.sleep(0.01)
    return time.monotonic() - start


def done(session: Session) -> Callable[[], bool]:
    return lambda: session.job is not None and not session.job.active
