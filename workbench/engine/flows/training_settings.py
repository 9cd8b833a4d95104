"""What a training is asked for, checked as a whole before it begins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from workbench.engine.errors import WrongValue

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "one_cycle", "constant")
PRECISIONS = ("float32", "bfloat16")

FREE = ("checkpoint_every", "keep")
"""Settings that may change between two parts of one training: they do not change its result."""


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides a training's result, besides the model and its data.

    ``optimizer``: 'adamw' or 'sgd' (momentum 0.9, Nesterov). ``weight_decay`` is for weights
    alone, never for biases, norms, clip bounds or scales. ``clip_rate`` and ``scale_rate``: the
    learning rates of clip bounds and weight scales as multiples of ``learning_rate``.
    ``schedule``: 'cosine' (down to 0), 'one_cycle' (up for 30 % of the steps, then down) or
    'constant'. ``gradient_clip``: largest norm of all gradients together, 0: any.

    ``evaluate_every`` and ``checkpoint_every`` in steps, 0: at the end of each epoch.
    ``patience``: stop when that many evaluations in a row gained no more than ``min_delta`` over
    the best one, 0: never. ``keep``: how many checkpoints stay on disk, besides the best weights.
    ``precision``: 'bfloat16' computes the forward under autocast. ``seed``: of dropout and the
    like, and of a loader that shuffles with torch's, NumPy's or Python's own randomness.
    """

    epochs: int = 2
    learning_rate: float = 1e-3
    optimizer: str = "adamw"
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    clip_rate: float = 10.0
    scale_rate: float = 0.1
    gradient_clip: float = 0.0
    evaluate_every: int = 0
    patience: int = 0
    min_delta: float = 0.0
    checkpoint_every: int = 0
    keep: int = 2
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            *_choices(self),
            *_whole_numbers(self),
            *_numbers(self),
        ]
        if problems:
            raise WrongValue(
                "; ".join(problems), where="training settings", hint="Correct these fields."
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """From plain values, as a job or a file holds them; unknown names are refused."""
        known = {field.name for field in fields(cls)}
        unknown = [name for name in values if name not in known]
        if unknown:
            raise WrongValue(
                f"there is no setting {', '.join(map(repr, unknown))}",
                where="training settings",
                hint=f"Settings: {', '.join(sorted(known))}.",
            )
        return cls(**dict(values))

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Settings that decide the result and are not as in ``other``, in words."""
        mine = asdict(self)
        return [
            f"{name} is {mine[name]!r}, was {other.get(name)!r}"
            for name in mine
            if name not in FREE and mine[name] != other.get(name)
        ]


def multiplier(schedule: str, step: int, steps: int) -> float:
    """What the learning rates are multiplied with for step ``step`` (from 0) of ``steps``."""
    if schedule == "constant" or steps < 1:
        return 1.0
    share = min(1.0, step / steps)
    if schedule == "one_cycle":
        rise, start = 0.3, 0.04
        if share < rise:
            return start + (1 - start) * (1 - math.cos(math.pi * share / rise)) / 2
        share = (share - rise) / (1 - rise)
    return (1 + math.cos(math.pi * share)) / 2


def _choices(settings: TrainingSettings) -> list[str]:
    allowed = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "precision": PRECISIONS}
    return [
        f"{name} is {getattr(settings, name)!r}; allowed: {', '.join(values)}"
        for name, values in allowed.items()
        if getattr(settings, name) not in values
    ]


def _whole_numbers(settings: TrainingSettings) -> list[str]:
    least = {
        "epochs": 1, "evaluate_every": 0, "patience": 0, "checkpoint_every": 0, "keep": 1,
        "seed": 0,
    }  # fmt: skip
    found = []
    for name, low in least.items():
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            found.append(f"{name} is {value!r}; allowed: an integer of at least {low}")
    return found


def _numbers(settings: TrainingSettings) -> list[str]:
    positive = ("learning_rate",)
    others = ("weight_decay", "clip_rate", "scale_rate", "gradient_clip", "min_delta")
    found = []
    for name in (*positive, *others):
        value = getattr(settings, name)
        right = isinstance(value, int | float) and not isinstance(value, bool)
        if not right or not math.isfinite(value) or value < 0 or (name in positive and value == 0):
            words = "above 0" if name in positive else "of at least 0"
            found.append(f"{name} is {value!r}; allowed: a finite number {words}")
    return found
