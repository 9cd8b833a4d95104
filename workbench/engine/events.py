"""What long engine calls report, and how they are told to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from workbench.engine.errors import Cancelled


@dataclass(frozen=True)
class Event:
    """Base of everything passed to ``on_event``."""


@dataclass(frozen=True)
class Progress(Event):
    """``done`` of ``total`` steps of ``what`` are finished (``total`` 0: not known)."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Notice(Event):
    """Something the user should know that is not an error."""

    message: str


@dataclass(frozen=True)
class LayerMeasurement:
    """How much quantising one layer alone changes its output.

    ``cosine`` in [-1, 1]; ``sqnr_db`` in decibel; ``accumulated_cosine`` compares the layer's
    output in the quantised network with the float network's (NaN when not measured).
    """

    name: str
    cosine: float
    sqnr_db: float
    accumulated_cosine: float = float("nan")


@dataclass(frozen=True)
class LayerMeasured(Event):
    """One layer's similarity is known (it may be refined by later batches)."""

    measurement: LayerMeasurement


@dataclass(frozen=True)
class SearchPhase(Event):
    """A search enters a phase: original, calibration, all, sensitivity, search or final."""

    phase: str


@dataclass(frozen=True)
class TrialStarted(Event):
    """A configuration is about to be evaluated; ``float_layers`` stay float."""

    trial: int
    phase: str
    float_layers: tuple[str, ...]


@dataclass(frozen=True)
class TrialFinished(Event):
    """A configuration was judged. ``phase``: original, all, search, speculative or final.

    ``share`` of the samples was evaluated (below 1: the verdict came early, the metric is an
    estimate); ``cached``: it was known from an earlier run. ``variants``: layers that are quantised
    with other settings than the configuration's, and the name of those.
    """

    trial: int
    phase: str
    float_layers: tuple[str, ...]
    metric: float | None
    loss: float
    satisfied: bool
    seconds: float
    share: float = 1.0
    cached: bool = False
    variants: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ParetoPointFound(Event):
    """A configuration that none before it equals or beats in both loss and cost.

    ``objective`` is size (bytes), bops (bit-operations of one sample) or latency (milliseconds).
    """

    float_layers: tuple[str, ...]
    variants: tuple[tuple[str, str], ...]
    metric: float | None
    loss: float
    objective: str
    cost: float
    satisfied: bool


@dataclass(frozen=True)
class RankingKnown(Event):
    """Layers from most to least sensitive, with the sensitivity value of each."""

    ranking: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class BracketMoved(Event):
    """The smallest number of float layers that passes lies in ``low`` to ``high``."""

    low: int
    high: int


@dataclass(frozen=True)
class RoundingTuned(Event):
    """``iteration`` of ``iterations`` steps of learning a layer's rounding; the loss there."""

    layer: str
    iteration: int
    iterations: int
    loss: float


@dataclass(frozen=True)
class FileWritten(Event):
    """A result file is complete on disk; ``size`` in bytes."""

    path: str
    size: int


@dataclass(frozen=True)
class TrainStep(Event):
    """One optimiser step is done: the ``step``-th of ``steps`` (0: not known), its batch's loss."""

    step: int
    steps: int
    epoch: int
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class Evaluated(Event):
    """The validation metric after ``step`` steps; ``best``: none before it was higher."""

    step: int
    metric: float
    best: bool


@dataclass(frozen=True)
class ClipsMoved(Event):
    """Where the clip bounds of each quantised layer stand after ``step`` steps: (min, max)."""

    step: int
    clips: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class CheckpointWritten(Event):
    """A checkpoint of the state after ``step`` steps is complete on disk; ``size`` in bytes."""

    step: int
    path: str
    size: int


@dataclass(frozen=True)
class DistillGroupStarted(Event):
    """Group ``group`` of ``groups`` (from 0) is about to be trained; its mean loss before."""

    group: int
    groups: int
    names: tuple[str, ...]
    loss: float


@dataclass(frozen=True)
class DistillStep(Event):
    """Step ``step`` of ``steps`` of an epoch (all from 0) of a group is done; its batch's loss."""

    group: int
    epoch: int
    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class DistillGroupFinished(Event):
    """A group is trained; mean losses before and of the state it was left in."""

    group: int
    groups: int
    names: tuple[str, ...]
    loss_before: float
    loss_after: float


OnEvent = Callable[[Event], None]


class CancelToken:
    """A flag another thread sets to stop a long call at its next step, or to hold it there."""

    def __init__(self) -> None:
        self._flag = threading.Event()
        self._running = threading.Event()
        self._running.set()

    def cancel(self) -> None:
        """Stop the call at its next ``check``; a paused one too."""
        self._flag.set()
        self._running.set()

    def pause(self) -> None:
        """Hold the call at its next ``check`` until ``resume`` or ``cancel``."""
        if not self.cancelled:
            self._running.clear()

    def resume(self) -> None:
        self._running.set()

    @property
    def paused(self) -> bool:
        return not self._running.is_set()

    @property
    def cancelled(self) -> bool:
        return self._flag.is_set()

    def check(self) -> None:
        """Wait while paused; raise ``Cancelled`` if the flag is set."""
        self._running.wait()
        if self._flag.is_set():
            raise Cancelled("cancelled by the user")


def emit(on_event: OnEvent | None, event: Event) -> None:
    if on_event is not None:
        on_event(event)


def check(cancel: CancelToken | None) -> None:
    if cancel is not None:
        cancel.check()
