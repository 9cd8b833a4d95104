"""The metric after an edit, measured once the edits rest; part of a session."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Protocol

from workbench.engine.errors import WorkbenchError, WrongState
from workbench.studio import measuring
from workbench.studio.errors import JobActive
from workbench.studio.following import Follower
from workbench.studio.measuring import Measuring
from workbench.studio.project import Project
from workbench.studio.state import JobState, Summary

if TYPE_CHECKING:
    from workbench.studio.jobs import JobManager

log = logging.getLogger("workbench.studio.background")

REST_SECONDS = 1.5
"""So long nothing is edited before an evaluation begins."""
LOOK_SECONDS = 0.5


class Measured(Protocol):
    """Of a session, what measuring needs."""

    project: Project
    summary: Summary
    job: JobState | None
    measuring: Measuring | None
    background: bool
    revision: int
    _follower: Follower
    _lock: threading.RLock
    _manager: JobManager | None
    _rest: Rest

    def poll(self) -> bool: ...
    @property
    def measures(self) -> bool: ...


class Rest:
    """Since when nothing happens, and whether that was made use of already."""

    def __init__(self) -> None:
        self._seen: tuple[int, bool] | None = None
        self._since = 0.0
        self._used = -1
        self._looked = 0.0

    def is_new(self, revision: int, job_active: bool, tick: int) -> bool:
        """True once for each ``tick`` of the store after a while without edits and jobs."""
        now = time.monotonic()
        if (revision, job_active) != self._seen:
            self._seen, self._since = (revision, job_active), now
        if job_active or self._used == tick or now - self._since < REST_SECONDS:
            return False
        self._used = tick
        return True

    def is_time_to_look(self) -> bool:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return False
        self._looked = now
        return True


class MeasuringControl:
    """A what-if shows a prediction at once; the worker replaces it with what it measures.

    That is no job: it gives way to every job and to the next edit, leaves no row in the history,
    and what it found is kept by configuration, so that an undo shows it again without work. What
    is expected to take longer than some seconds waits for ``measure``.
    """

    @property
    def measures(self: Measured) -> bool:
        """Whether edits of this session can be evaluated in the background.

        They are not in a notebook's own process, which belongs to its cells.
        """
        manager = self._manager
        known = self.project.source.kind != "none"
        return manager is not None and manager.measures and known and not self.project.read_only

    @property
    def measuring_this(self: Measured) -> Measuring | None:
        """``measuring``, where it concerns the configuration as it is."""
        found = self.measuring
        if found is None or found.config_hash != self._follower.figures.hash():
            return None
        return found

    def set_background(self: Measured, on: bool) -> None:
        """Evaluate edits in the background, or not; for every window of the project."""
        store = self.project.store
        store.put(**{measuring.SWITCH: bool(on)})
        wanted = self.measuring
        if not on and wanted is not None and wanted.active and not wanted.asked:
            measuring.drop(store, wanted.config_hash)
        self.poll()

    def measure(self: Measured) -> None:
        """Have the configuration as it is evaluated in the background, however long it takes.

        Returns at once; ``summary`` follows. ``evaluate`` is the job that does more: it calibrates
        for real and keeps the record. Errors: ``JobActive`` while a job runs, ``WrongState``
        before ``analyse`` or where nothing is quantised.
        """
        self.poll()
        if self.job is not None and self.job.active:
            raise JobActive(
                f"a job is at work in this project already: {self.job.kind}",
                where="measure",
                hint="It goes first. What is not measured then is measured when it has ended.",
            )
        if self._manager is None or not self._follower.figures.analysed:
            raise WrongState(
                "there are no statistics yet that an evaluation could use",
                where="measure",
                hint="Analyse first.",
            )
        if not self.summary.quantized:
            raise WrongState(
                "every layer is switched off, so there is nothing to measure",
                where="measure",
                hint="Switch at least one layer on.",
            )
        self._manager.measure(self._follower.figures.hash(), asked=True)
        self.poll()

    def _measure_at_rest(self: Measured, tick: int) -> None:
        """Called by every poll that finds nothing new."""
        manager = self._manager
        if manager is None or not self.measures:
            return
        wanted = self.measuring
        if wanted is not None and wanted.active and self._rest.is_time_to_look():
            manager.look_after_measuring(wanted)
        active = self.job is not None and self.job.active
        if (
            self._rest.is_new(self.revision, active, tick)
            and self.background
            and self.summary.metric_is_prediction
        ):
            try:
                manager.measure(self._follower.figures.hash())
            except (WorkbenchError, OSError) as error:  # nobody has asked: nobody is told
                log.warning("the edit is not evaluated: %s", error)
