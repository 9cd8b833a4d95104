"""From engine events to numbered rows of the store, a few times a second."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import threading
import time
from typing import Any

from workbench.engine.errors import WorkbenchError
from workbench.engine.events import (
    BracketMoved,
    CancelToken,
    Event,
    LayerMeasured,
    Progress,
    RankingKnown,
    TrainStep,
    TrialFinished,
    TrialStarted,
)
from workbench.studio import jobtable
from workbench.studio.measurements import write_measurements
from workbench.studio.store import Store, put_meta
from workbench.studio.training_feed import EVENTS as TRAINING_EVENTS
from workbench.studio.training_feed import TrainingFeed

log = logging.getLogger("workbench.studio.jobs")

FLUSH_SECONDS = 0.2
BEAT_SECONDS = 0.1
UNITS = 100
EVENTS_KEPT = 20_000


class Reporter:
    """``on_event`` of one job. Measurements and progress are merged between two writes.

    ``stage`` names the step of several that the job is in; its progress is the job's.
    """

    def __init__(self, store: Store, job: int, *, stages: int = 1) -> None:
        self._store = store
        self._job = job
        self._lock = threading.Lock()
        self._stages = stages
        self._longest: int | None = None
        self._stage = -1
        self._steps = 0
        self._fraction = 0.0
        self._message = ""
        self._known_length = True
        self._began = time.monotonic()
        self._last = 0.0
        self._events: list[tuple[str, str, float]] = []
        self._progress: Progress | None = None
        self._measured: dict[str, LayerMeasured] = {}
        self._meta: dict[str, Any] = {}
        self._training = TrainingFeed()
        self._dirty = False
        self.cancelling = False
        self.settings: dict[str, str] | None = None
        """Settings (see ``settings_key``) that measurements are made with."""

    def stages(self, count: int, *, longest: int | None = None) -> None:
        """So many stages; that with the number ``longest`` takes as long as ten times the rest."""
        self._stages = count
        self._longest = longest

    def stage(self, message: str, *, steps: int = 0, known_length: bool = True) -> None:
        """The next step begins; ``steps`` is its length where events do not say it."""
        with self._lock:
            self._stage += 1
            self._steps = steps
            self._fraction = 0.0
            self._message = message
            self._known_length = known_length
            self._dirty = True
        self.flush()

    def say_cancelling(self) -> None:
        with self._lock:
            self._dirty = self._dirty or not self.cancelling
            self.cancelling = True

    def leave_out(self, seconds: float) -> None:
        """A pause of ``seconds`` says nothing about how fast the job is."""
        with self._lock:
            self._began += seconds

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._dirty = True
            if isinstance(event, LayerMeasured):
                self._measured[event.measurement.name] = event
            elif isinstance(event, Progress):
                self._progress = event
                total = event.total or self._steps
                if total:
                    self._fraction = min(1.0, event.done / total)
            elif isinstance(event, TRAINING_EVENTS):
                self._training.add(event)
                if isinstance(event, TrainStep):
                    self._fraction = event.step / event.steps if event.steps else 0.0
                    self._message = f"step {event.step} of {event.steps}: loss {event.loss:.4f}"
            else:
                self._keep(event)
            due = time.monotonic() - self._last >= FLUSH_SECONDS
        if due:
            self.flush()

    def _keep(self, event: Event) -> None:
        self._events.append((type(event).__name__, _payload(event), time.time()))
        if isinstance(event, BracketMoved):
            self._meta["bracket"] = [event.low, event.high]
        elif isinstance(event, RankingKnown):
            self._meta["ranking"] = [name for name, _ in event.ranking]
        elif isinstance(event, TrialStarted):
            count = len(event.float_layers)
            self._message = f"trial {event.trial}: {count} layers float"
        elif isinstance(event, TrialFinished) and event.metric is not None:
            if event.phase == "original":  # not one of the trials, which are counted from 0
                self._message = f"the float model: metric {event.metric:.4f}"
            else:
                self._message = f"trial {event.trial}: metric {event.metric:.4f}"

    def flush(self, *, final: bool = False) -> None:
        """Write what has come in since the last time, in one transaction; ``final``: all of it."""
        with self._lock:
            if not self._dirty and not final:
                return
            self._dirty = False
            self._last = time.monotonic()
            now = time.time()
            events = self._events
            for event in self._training.take(everything=final):
                events.append((type(event).__name__, _payload(event), now))
            events += [("LayerMeasured", _payload(m), now) for m in self._measured.values()]
            if self._progress is not None:
                events.append(("Progress", _payload(self._progress), now))
            measured = [m.measurement for m in self._measured.values()]
            meta = self._meta
            self._events, self._measured, self._meta, self._progress = [], {}, {}, None
            done, total, left = self._position()
            message = self._message
            if self.cancelling:
                message = f"cancelling, waiting for: {message}"
            with self._store.write() as connection:
                connection.execute(
                    "UPDATE jobs SET done = ?, total = ?, message = ?, seconds_left = ? "
                    "WHERE id = ? AND state = 'running'",
                    (done, total, message, left, self._job),
                )
                connection.executemany(
                    "INSERT INTO events (job, kind, payload, time) VALUES (?, ?, ?, ?)",
                    [(self._job, *event) for event in events],
                )
                if measured:
                    write_measurements(
                        connection,
                        [(m.name, m.cosine, m.sqnr_db, m.accumulated_cosine) for m in measured],
                        self.settings,
                    )
                put_meta(connection, meta)

    def _position(self) -> tuple[int, int, float | None]:
        if not self._known_length:
            return 0, 0, None
        stage = max(self._stage, 0)
        total = UNITS * self._stages
        weights = [1.0] * self._stages
        if self._longest is not None:
            weights[self._longest] = 10.0 * (self._stages - 1)
        done = sum(weights[:stage]) + sum(weights[stage : stage + 1]) * self._fraction
        share = min(1.0, done / sum(weights))
        done = int(total * share)
        elapsed = time.monotonic() - self._began
        left = elapsed * (1 - share) / share if share > 0.05 else None
        return done, total, left


class Heart:
    """A thread beside a job: passes a cancel and a pause on, and flushes progress meanwhile."""

    def __init__(self, store: Store, job: int, cancel: CancelToken, reporter: Reporter) -> None:
        self._store, self._job, self._cancel, self._reporter = store, job, cancel, reporter
        self._stop = threading.Event()
        self._last = self._paused = 0.0
        self._thread = threading.Thread(target=self._run, name=f"job {job} heart", daemon=True)

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        self._last = self._paused = time.monotonic()
        while not self._stop.wait(BEAT_SECONDS):
            try:
                self._beat()
            except WorkbenchError as error:  # a full disk: the job itself says so, if it stays full
                log.debug("a beat of job %d was lost: %s", self._job, error)

    def _beat(self) -> None:
        if jobtable.cancel_requested(self._store, self._job):
            self._cancel.cancel()
            self._reporter.say_cancelling()
        elif jobtable.pause_requested(self._store, self._job) != self._cancel.paused:
            if self._cancel.paused:
                self._reporter.leave_out(time.monotonic() - self._paused)
                self._cancel.resume()
            else:
                self._paused = time.monotonic()
                self._cancel.pause()
        if time.monotonic() - self._last >= FLUSH_SECONDS:
            self._last = time.monotonic()
            self._reporter.flush()


def trim_events(store: Store) -> None:
    """Keep the newest events; projects live long and history is in the trials."""
    with store.write() as connection:
        connection.execute(
            "DELETE FROM events WHERE seq <= (SELECT max(seq) FROM events) - ?", (EVENTS_KEPT,)
        )


def _payload(event: Event) -> str:
    return json.dumps(_clean(dataclasses.asdict(event)))


def _clean(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
