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
class TrialStarted(Event):
    """A configuration is about to be evaluated; ``float_layers`` stay float."""

    trial: int
    phase: str
    float_layers: tuple[str, ...]


@dataclass(frozen=True)
class TrialFinished(Event):
    """A configuration was judged. ``phase``: original, all, search or final."""

    trial: int
    phase: str
    float_layers: tuple[str, ...]
    metric: float | None
    loss: float
    satisfied: bool
    seconds: float


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
class FileWritten(Event):
    """A result file is complete on disk; ``size`` in bytes."""

    path: str
    size: int


OnEvent = Callable[[Event], None]


class CancelToken:
    """A flag another thread sets to stop a long call at its next step."""

    def __init__(self) -> None:
        self._flag = threading.Event()

    def cancel(self) -> None:
        self._flag.set()

    @property
    def cancelled(self) -> bool:
        return self._flag.is_set()

    def check(self) -> None:
        """Raise ``Cancelled`` if the flag is set."""
        if self._flag.is_set():
            raise Cancelled("cancelled by the user")


def emit(on_event: OnEvent | None, event: Event) -> None:
    if on_event is not None:
        on_event(event)


def check(cancel: CancelToken | None) -> None:
    if cancel is not None:
        cancel.check()
