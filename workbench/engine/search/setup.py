"""Everything a search works with, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from workbench.engine.events import CancelToken, OnEvent
from workbench.engine.files.config import QuantConfig
from workbench.engine.flows.layer_data import Batch
from workbench.engine.graph.capture import Captured
from workbench.engine.search.cache import TrialCache
from workbench.engine.search.evaluator import AutoCalibrationEvaluatorBase
from workbench.engine.search.sensitivity import SensitivityBase
from workbench.engine.search.workers import Workers

Pins = Callable[[], Mapping[str, bool]]


@dataclass(frozen=True)
class SearchSetup:
    """``options`` are those of ``Calibration``; ``dump_folder`` gets each layer's inputs.

    ``early``: verdicts from a part of the samples are allowed.
    """

    model: nn.Module
    captured: Captured
    config: QuantConfig
    evaluator: AutoCalibrationEvaluatorBase
    sensitivity: SensitivityBase
    backend: str = "torch"
    options: Mapping[str, Any] = field(default_factory=dict)
    calibration_data: Sequence[Batch] | None = None
    seed: int = 0
    cache: TrialCache = field(default_factory=TrialCache)
    workers: Workers | None = None
    pins: Pins | None = None
    early: bool = False
    dump_folder: Path | None = None
    on_event: OnEvent | None = None
    cancel: CancelToken | None = None
