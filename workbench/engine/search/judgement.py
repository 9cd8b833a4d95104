"""What a user's ``metric_eval`` and ``evaluate`` return, made safe to work with."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from workbench.engine.errors import WrongType, WrongValue


def judgement(value: Any) -> tuple[bool, float]:
    """``(satisfied, loss)`` of a ``metric_eval`` return, coerced to Python types.

    Errors: ``TypeError`` for anything but a pair of bool and number; ``ValueError`` for NaN.
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise WrongType(
            f"metric_eval must return a pair (satisfied, loss), it returned {value!r}",
            where="model_evaluator",
        )
    try:
        satisfied, loss = bool(value[0]), float(value[1])
    except (TypeError, ValueError) as error:
        raise WrongType(
            f"metric_eval must return (bool, number), it returned {value!r}",
            where="model_evaluator",
        ) from error
    if math.isnan(loss):
        raise WrongValue(
            "metric_eval returned a loss of NaN",
            where="model_evaluator",
            hint="check evaluate() on the quantised model.",
        )
    return satisfied, loss


def number_of(metric: Any) -> float | None:
    try:
        return float(metric)
    except (TypeError, ValueError):
        return None


def storable(metric: Any) -> dict[str, Any]:
    """``{"metric": ...}`` when JSON gives the metric back exactly as it is, else nothing.

    NumPy scalars become Python's.
    """
    plain = metric.item() if isinstance(metric, np.generic) else metric
    try:
        if json.loads(json.dumps(plain)) == plain and not isinstance(plain, tuple):
            return {"metric": plain}
    except (TypeError, ValueError):
        pass
    return {}
