"""One clock per session: asks it five times a second what other windows and jobs have done."""

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import Any

logger = logging.getLogger("workbench.widgets")

INTERVAL = 0.2  # seconds; more updates than five a second replace elements under the user's mouse

_clocks: weakref.WeakKeyDictionary[Any, Clock] = weakref.WeakKeyDictionary()


class Clock:
    """Polls one session in the kernel's own event loop for as long as a view is open.

    It runs in the thread that runs the cells, so views need no locks. While a cell runs, the loop
    waits; the session's long calls poll themselves meanwhile.
    """

    def __init__(self, session: Any) -> None:
        # A forgotten clock must not keep a session and its model in memory.
        self._session = weakref.ref(session)
        self._users = 0
        self._task: asyncio.Task[None] | None = None
        self.ticking = False
        """Whether what the session tells now was found by this clock, not by a cell that waits."""

    @property
    def running(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        self._users += 1
        if not self.running:
            try:
                self._task = asyncio.get_running_loop().create_task(self._run())
            except RuntimeError:
                # Plain Python without an event loop: the caller polls the session.
                self._task = None

    def stop(self) -> None:
        self._users = max(0, self._users - 1)
        if self._users == 0 and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        failures = 0
        while self._users:
            session = self._session()
            if session is None:
                return
            self.ticking = True
            try:
                session.poll()
                failures = 0
            except Exception:
                failures += 1
                logger.exception("the session could not be asked for news (%d)", failures)
                if failures == 5:
                    return
            finally:
                self.ticking = False
            del session
            await asyncio.sleep(INTERVAL)


def clock(session: Any) -> Clock:
    """The clock that all views on ``session`` share."""
    found = _clocks.get(session)
    if found is None:
        found = _clocks[session] = Clock(session)
    return found
