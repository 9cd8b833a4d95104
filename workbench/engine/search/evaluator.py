"""What a user supplies to auto-calibration: how to calibrate, measure and judge a model."""

from __future__ import annotations

from typing import Any

from torch import nn


class AutoCalibrationEvaluatorBase:
    """Base of evaluators; override the three methods. Source: chapter 20 section 2."""

    def calibration(self, model: nn.Module) -> None:
        """Run at least ``batch_num`` batches through ``model``; the result is ignored."""
        raise NotImplementedError(f"{type(self).__name__} must override calibration(model)")

    def evaluate(self, model: nn.Module) -> Any:
        """The metric of ``model``: any object, handed untouched to ``metric_eval``."""
        raise NotImplementedError(f"{type(self).__name__} must override evaluate(model)")

    def metric_eval(self, original_metric: Any, new_metric: Any) -> tuple[bool, float]:
        """``(satisfied, loss)``: is ``new_metric`` good enough, and what was lost."""
        raise NotImplementedError(f"{type(self).__name__} must override metric_eval(original, new)")
