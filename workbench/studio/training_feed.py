"""Training events on their way to the store: as many as a chart can show, however long it takes."""

from __future__ import annotations

import time
from dataclasses import replace

from workbench.engine.events import (
    CheckpointWritten,
    ClipsMoved,
    Evaluated,
    Event,
    TrainStep,
)

EVENTS = (TrainStep, Evaluated, ClipsMoved, CheckpointWritten)
LEAST_SECONDS = 0.2
SHARE = 1000
"""A point comes after at least this part of the time so far: some thousand points a day."""


class TrainingFeed:
    """Merges steps: a point's loss is the mean of the steps since the point before it."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._last = 0.0
        self._losses: list[float] = []
        self._step: TrainStep | None = None
        self._clips: ClipsMoved | None = None
        self._others: list[Event] = []

    def add(self, event: Event) -> None:
        if isinstance(event, TrainStep):
            self._losses.append(event.loss)
            self._step = event
        elif isinstance(event, ClipsMoved):
            self._clips = event
        else:
            self._others.append(event)

    def take(self, *, everything: bool = False) -> list[Event]:
        """What is to be written now: milestones at once, steps when they are due."""
        found, self._others = self._others, []
        now = time.monotonic()
        wait = max(LEAST_SECONDS, (now - self._began) / SHARE)
        if not (everything or found or now - self._last >= wait):
            return found
        merged: list[Event] = []
        if self._step is not None:
            self._last = now
            mean = sum(self._losses) / len(self._losses)
            merged.append(replace(self._step, loss=mean))
        if self._clips is not None:
            merged.append(self._clips)
        self._losses, self._step, self._clips = [], None, None
        return [*merged, *found]
