"""What a session shows: small frozen dataclasses that views compare and draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

NAN = float("nan")

JobKind = Literal[
    "open", "analyse", "inspect", "search", "prune_search", "prune", "decompose", "train",
    "weights", "formats", "quantize", "evaluate", "export",
]  # fmt: skip
JOB_KINDS: tuple[JobKind, ...] = (
    "open", "analyse", "inspect", "search", "prune_search", "prune", "decompose", "train",
    "weights", "formats", "quantize", "evaluate", "export",
)  # fmt: skip
ACTIVE_STATES = ("queued", "running", "paused", "cancelling")


@dataclass(frozen=True)
class Change:
    """One change batch: ``column`` of ``rows`` became ``values`` at ``revision``.

    No rows means that everything may have changed.
    """

    column: str
    rows: tuple[int, ...]
    values: tuple[Any, ...]
    revision: int


@dataclass(frozen=True)
class Summary:
    """The figures at the top of the page.

    ``metric_current`` is a prediction when ``metric_is_prediction``. Sizes are bytes of parameters
    at their stored width, bit-operations are MACs × activation bits × weight bits for one sample;
    floats are NaN until known. ``notices``: what is to be known of the model and its data.
    """

    model: str = ""
    data: str = ""
    metric_name: str = ""
    metric_float: float = NAN
    metric_current: float = NAN
    metric_is_prediction: bool = False
    size_float: float = NAN
    size_current: float = NAN
    bops_float: float = NAN
    bops_current: float = NAN
    quantized: int = 0
    eligible: int = 0
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class ErrorText:
    """What happened in one sentence, what to do next, and the details to fold away.

    ``wrong``: an argument, the project or a file of it is to blame, not the work itself.
    """

    summary: str
    hint: str = ""
    details: str = ""
    wrong: bool = False


@dataclass(frozen=True)
class JobState:
    """One long engine call; ``started`` in seconds since the epoch (0 while queued).

    ``state``: queued, running, paused, cancelling, finished, failed or cancelled.
    """

    id: int
    kind: str
    state: str
    done: int = 0
    total: int = 0
    message: str = ""
    started: float = 0.0
    seconds_left: float | None = None
    error: ErrorText | None = None

    @property
    def active(self) -> bool:
        return self.state in ACTIVE_STATES


@dataclass(frozen=True)
class ExportedFile:
    """One written file; ``kind`` is float, fake_quant, deploy or qdq.

    ``metric`` and the latency (median and spread, one batch, milliseconds) are measured in
    ONNX Runtime and None for a file that it cannot run; ``ratio`` is float bytes ÷ bytes.
    """

    kind: str
    path: str
    bytes: int
    metric: float | None
    latency_ms: float | None
    latency_spread_ms: float | None
    ratio: float


@dataclass(frozen=True)
class ParityLine:
    """Do two forms of the quantised network agree, in words and figures."""

    text: str
    ok: bool
    max_abs: float
    first_layer: str | None


@dataclass(frozen=True)
class ExportResult:
    """What the last export wrote and how it was checked.

    ``method``: ptq, or the training whose network it is.
    """

    files: tuple[ExportedFile, ...]
    parity: tuple[ParityLine, ...]
    method: str = "ptq"
