"""The project's data and metric as the search's evaluator."""

from __future__ import annotations

from typing import Any

from torch import nn

from workbench.engine.events import CancelToken, Event, OnEvent, Progress, check
from workbench.engine.search.evaluator import AutoCalibrationEvaluatorBase
from workbench.studio.sources import LoadedSource


class StudioEvaluator(AutoCalibrationEvaluatorBase):
    """Satisfied when the metric falls by at most ``max_loss`` (in the metric's own unit)."""

    def __init__(
        self, source: LoadedSource, max_loss: float, on_event: OnEvent, cancel: CancelToken
    ) -> None:
        self._source, self._max_loss = source, max_loss
        self._on_event, self._cancel = on_event, cancel

    def calibration(self, model: nn.Module) -> None:
        total = len(self._source.calibration)
        for done, batch in enumerate(self._source.calibration):
            check(self._cancel)
            model(*batch)
            self._on_event(Progress("calibration", done + 1, total))

    def evaluate(self, model: nn.Module) -> float:
        return self._source.metric(
            model, self._source.evaluation, on_event=self._report, cancel=self._cancel
        )

    def metric_eval(self, original_metric: Any, new_metric: Any) -> tuple[bool, float]:
        loss = float(original_metric) - float(new_metric)
        # Accuracies are multiples of 1/n; a loss of exactly the target must not fail by rounding.
        return loss <= self._max_loss + 1e-12, loss

    def _report(self, event: Event) -> None:
        self._on_event(event)
