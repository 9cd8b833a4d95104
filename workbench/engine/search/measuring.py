"""Evaluates one configuration: whole, or sample by sample until its verdict is sure."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from workbench.engine.errors import WrongValue
from workbench.engine.search.early import SequentialTest
from workbench.engine.search.evaluator import AutoCalibrationEvaluatorBase
from workbench.engine.search.judging import Scores

_CHUNK = 32
"""Scores are kept after at least so many samples, and at most 32 times a trial."""

Fetch = Callable[[Sequence[int]], Mapping[int, float]]


@dataclass(frozen=True)
class SamplePlan:
    """How a trial is measured by samples; ``max_loss`` None: every sample is needed.

    ``original``: the original model's scores by sample; ``quantized``: those of the all-quantised
    model when known; ``limits``: the range of a score when the evaluator says it.
    """

    original: Scores
    quantized: Scores | None = None
    max_loss: float | None = None
    limits: tuple[float, float] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """``verdict`` None: to be judged from ``metric``. ``fresh``: scores that were evaluated."""

    metric: Any
    seconds: float
    share: float = 1.0
    verdict: bool | None = None
    fresh: Mapping[int, float] = field(default_factory=dict)


def mean_of(scores: Sequence[float] | Scores) -> float:
    """Exactly rounded, so that the order of the samples does not matter."""
    return math.fsum(scores) / len(scores)


def by_samples(
    plan: SamplePlan, known: Mapping[int, float], fetch: Fetch | None, *, early: bool, key: int
) -> Outcome | None:
    """Walk through the samples until the verdict is sure or all are seen.

    Samples in ``known`` are not evaluated again. ``fetch`` None: only look whether ``known`` is
    enough; None as the result when it is not. ``key``: the configuration's own random order.
    """
    start = time.perf_counter()
    scores, fresh = dict(known), dict[int, float]()
    total = len(plan.original)

    def have(indices: Sequence[int]) -> bool:
        missing = [i for i in indices if i not in scores]
        if missing and fetch is not None:
            found = fetch(missing)
            scores.update(found)
            fresh.update(found)
        return not missing or fetch is not None

    if early and plan.max_loss is not None:
        test = SequentialTest(
            plan.original,
            plan.max_loss,
            quantized=plan.quantized,
            limits=plan.limits,
            seed=plan.seed,
            key=key,
        )
        while (indices := test.next_indices()) is not None:
            if not have(wanted := indices.tolist()):
                return None
            test.observe(np.array([scores[i] for i in wanted]))
        verdict = test.result()
        if not verdict.whole:
            return Outcome(
                mean_of(plan.original) - verdict.loss,
                time.perf_counter() - start,
                verdict.seen / total,
                verdict.satisfied,
                fresh,
            )
    step = max(_CHUNK, math.ceil(total / 32))
    for begin in range(0, total, step):
        if not have(range(begin, min(begin + step, total))):
            return None
    metric = mean_of([scores[i] for i in range(total)])
    return Outcome(metric, time.perf_counter() - start, fresh=fresh)


def evaluate_whole(evaluator: AutoCalibrationEvaluatorBase, model: nn.Module) -> Outcome:
    """``evaluate``, timed."""
    start = time.perf_counter()
    metric = evaluator.evaluate(model)
    return Outcome(metric, time.perf_counter() - start)


def has_samples(evaluator: AutoCalibrationEvaluatorBase) -> bool:
    """Whether it says how it is doing sample by sample."""
    return callable(getattr(evaluator, "evaluate_samples", None))


def evaluate_samples(
    evaluator: AutoCalibrationEvaluatorBase, model: nn.Module, indices: Sequence[int] | None
) -> dict[int, float]:
    """Scores of these samples (None: all), in the order asked.

    Errors: ``ValueError`` when the evaluator leaves samples out or gives a score that is not
    finite.
    """
    wanted = None if indices is None else list(indices)
    evaluate: Any = evaluator
    scores = {int(i): float(s) for i, s in evaluate.evaluate_samples(model, wanted)}
    missing = set(range(len(scores)) if wanted is None else wanted) - set(scores)
    if missing or not scores:
        raise WrongValue(
            f"evaluate_samples gave no score for {len(missing) or 'all'} samples, the first is "
            f"{min(missing, default=0)}",
            where="model_evaluator",
            hint="Yield (index, score) for each index asked for, 0 to n - 1 when none is named.",
        )
    for index, score in scores.items():
        if not math.isfinite(score):
            raise WrongValue(f"the score of sample {index} is {score}", where="model_evaluator")
    return {i: scores[i] for i in (range(len(scores)) if wanted is None else wanted)}
