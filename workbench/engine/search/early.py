"""Early verdicts: stop a trial as soon as it is sure how the whole evaluation would end.

The metric is the mean of one score per sample; a configuration passes when

    mean(original) - mean(new) <= max_loss

over a finite set of samples. The scores of a deterministic model on a fixed set are fixed
numbers, so the only randomness is the order in which they are looked at. Three things decide:

* **Bounds.** With scores in a known range the samples not seen yet can gain or lose only so
  much. Once they cannot change the verdict, it is certain, whatever the order.
* **A stratum evaluated whole.** Samples on which the new model can be *better* and, when they
  are few, those on which the all-quantised model was worse come first and are counted, not
  estimated. Both sets are fixed before the trial draws its order, so what is left is a smaller
  population to estimate, not a biased sample.
* **A bet on the rest.** The rest comes in a random order without replacement. If the
  configuration failed, the next difference would be at least ``m = (T - S) / (N - i)`` on average
  (T: the smallest failing total of the rest, S: the sum seen of it, N - i: samples left), so the
  wealth of a gambler who bets on less, a product of ``1 + lambda (m - d)`` with
  ``0 <= lambda <= 1 / (b - m)``, is a supermartingale; it exceeds 1 / alpha with probability
  alpha at most, whenever one looks (Ville). The same bet in the other direction shows that a
  configuration fails. Exactly one of the two is true, so a verdict is wrong with probability
  ``error_rate`` at most. Each wealth is the mean over a grid of lambdas. With differences of 0
  and 1 and lambda at its limit the wealth after k samples without a difference is one over the
  hypergeometric probability of that.

Source: Waudby-Smith and Ramdas 2020, "Estimating means of bounded random variables by betting",
arXiv:2010.09686, section 5 (sampling without replacement).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.engine.errors import WrongValue
from workbench.engine.search.judging import Scores

Indices = NDArray[np.int64]

ERROR_RATE = 1e-3
"""Default bound on the probability that an early verdict is not that of the whole evaluation."""

WHOLE_STRATUM = 0.25
"""Samples that quantisation hurts are counted whole while they are at most this share."""

_BETS = np.array([1.0, 0.9, 0.75, 0.5, 0.3, 0.15, 0.06, 0.025, 0.01, 0.004])
"""Shares of the largest allowed lambda."""

_SLACK = 1e-9
"""Sums of scores closer than this are equal: a loss on the border passes."""


def score_range(original: Scores, declared: tuple[float, float] | None) -> tuple[float, float]:
    """The range that every score lies in: as declared, (0, 1) for hits and misses, or unbounded."""
    if declared is not None:
        low, high = (float(value) for value in declared)
        if not low < high:
            raise WrongValue(
                f"the range of the scores is {declared!r}",
                where="model_evaluator.score_range",
                hint="give (smallest, largest) score of one sample.",
            )
        return low, high
    if np.isin(original, (0.0, 1.0)).all():
        return 0.0, 1.0
    return -math.inf, math.inf


@dataclass(frozen=True)
class Strata:
    """Which samples come first and are counted whole, and which are drawn at random.

    ``gain``: the new model can be better on them; ``hard``: the all-quantised model was worse.
    """

    gain: Indices
    hard: Indices
    rest: Indices

    @classmethod
    def of(cls, original: Scores, quantized: Scores | None, limits: tuple[float, float]) -> Strata:
        """``quantized``: scores of the all-quantised model, None when they are not known."""
        everything = np.arange(len(original), dtype=np.int64)
        gain = original < limits[1] - _SLACK
        if gain.mean() > WHOLE_STRATUM:
            gain = np.zeros(len(original), bool)
        hard = np.zeros(len(original), bool)
        if quantized is not None:
            hard = (quantized < original - _SLACK) & ~gain
            if hard.mean() > WHOLE_STRATUM:
                hard[:] = False
        return cls(everything[gain], everything[hard], everything[~gain & ~hard])


@dataclass(frozen=True)
class Verdict:
    """``loss``: estimated from the ``seen`` samples, exact when ``whole``."""

    satisfied: bool
    loss: float
    seen: int
    whole: bool


class SequentialTest:
    """One trial's test: ask for `next_indices`, evaluate them, `observe` their scores, repeat.

    ``original``: scores of the original model, all samples. ``quantized``: those of the
    all-quantised model if known. ``key`` makes the order of this trial its own: a fresh order for
    every configuration keeps the error rate although earlier results led to the configuration.
    """

    def __init__(
        self,
        original: Scores,
        max_loss: float,
        *,
        quantized: Scores | None = None,
        limits: tuple[float, float] | None = None,
        error_rate: float = ERROR_RATE,
        seed: int = 0,
        key: int = 0,
        chunk: int | None = None,
    ) -> None:
        self._original = np.asarray(original, np.float64)
        self._limits = score_range(self._original, limits)
        count = len(self._original)
        self._chunk = chunk or max(16, count // 32)
        self._budget = max_loss * count
        self._threshold = math.log(1.0 / error_rate)
        self._strata = Strata.of(self._original, quantized, self._limits)
        generator = np.random.Generator(np.random.PCG64([seed, key]))
        parts = (self._strata.gain, self._strata.hard, self._strata.rest)
        self._order = np.concatenate([generator.permutation(part) for part in parts])
        self._counted = len(parts[0]) + len(parts[1])
        self._new = np.full(count, np.nan)
        self._seen = 0
        self._verdict: bool | None = None
        self._wealth = np.zeros((2, len(_BETS)))  # logarithms: for passing, for failing
        low, high = self._limits
        self._loss_left = float(np.sum(self._original - low))
        self._gain_left = float(np.sum(high - self._original))
        rest = self._original[self._strata.rest]
        self._range = (
            (float(rest.min()) - high, float(rest.max()) - low) if len(rest) else (0.0, 0.0)
        )
        binary = self._limits == (0.0, 1.0) and np.isin(self._original, (0.0, 1.0)).all()
        self._step = 1.0 if binary else 0.0

    @property
    def verdict(self) -> bool | None:
        """Passes, fails, or None: go on."""
        return self._verdict

    def next_indices(self) -> Indices | None:
        """The samples to evaluate next; None when the verdict is known."""
        if self._verdict is not None:
            return None
        # Counted samples and random ones never share a chunk: the bet starts with the count.
        end = self._counted if self._seen < self._counted else len(self._order)
        return self._order[self._seen : min(self._seen + self._chunk, end)]

    def observe(self, scores: Scores) -> None:
        """``scores`` of the samples that `next_indices` named, in that order."""
        indices = self.next_indices()
        if indices is None:
            raise WrongValue("the verdict is known already", where="SequentialTest.observe()")
        scores = np.asarray(scores, np.float64)
        low, high = self._limits
        if scores.size and (scores.min() < low - _SLACK or scores.max() > high + _SLACK):
            raise WrongValue(
                f"a sample's score is outside [{low:g}, {high:g}]",
                where="model_evaluator.evaluate_samples()",
                hint="set score_range on the evaluator to the range of its scores.",
            )
        self._new[indices] = scores
        before = self._seen
        self._seen += len(indices)
        original = self._original[indices]
        self._loss_left -= float(np.sum(original - low))
        self._gain_left -= float(np.sum(high - original))
        self._settle(before, original - scores)

    def _settle(self, before: int, differences: Scores) -> None:
        seen = self._order[: self._seen]
        total = float(np.sum(self._original[seen] - self._new[seen]))
        if self._seen == len(self._order):
            self._verdict = total <= self._budget + _SLACK
        elif total - self._gain_left > self._budget + _SLACK:
            self._verdict = False
        elif total + self._loss_left <= self._budget + _SLACK:
            self._verdict = True
        elif before >= self._counted and math.isfinite(self._range[0] + self._range[1]):
            self._bet(before - self._counted, differences)

    def _bet(self, before: int, differences: Scores) -> None:
        """Update both wealths with differences of the rest; they start after ``before`` of it."""
        counted = self._order[: self._counted]
        already = float(np.sum(self._original[counted] - self._new[counted]))
        left = self._budget - already  # the rest passes up to this total
        if self._step:
            left = math.floor(left + _SLACK)
        earlier = self._order[self._counted : self._counted + before]
        start = float(np.sum(self._original[earlier] - self._new[earlier]))
        sums = start + np.concatenate([[0.0], np.cumsum(differences)[:-1]])
        remaining = len(self._strata.rest) - before - np.arange(len(differences))
        low, high = self._range
        # Passing is shown by betting against the smallest failing total, and the other way round.
        bets = (
            (0, ((left + self._step) - sums) / remaining, differences, high, True),
            (1, -((left - sums) / remaining), -differences, -low, False),
        )
        for row, means, values, top, outcome in bets:
            lambdas = _BETS[:, None] / np.maximum(top - means, 1e-12)
            with np.errstate(divide="ignore"):
                growth = np.log(np.maximum(1.0 + lambdas * (means - values), 0.0))
            path = self._wealth[row][:, None] + np.cumsum(growth, axis=1)
            peak = float(np.max(np.logaddexp.reduce(path, axis=0))) - math.log(len(_BETS))
            self._wealth[row] = path[:, -1]
            if peak >= self._threshold and self._verdict is None:
                self._verdict = outcome

    def result(self) -> Verdict:
        """What is known now; ``loss`` extrapolates every stratum from its seen part."""
        total = 0.0
        for part in (self._strata.gain, self._strata.hard, self._strata.rest):
            seen = part[~np.isnan(self._new[part])]
            if len(seen):
                total += len(part) * float(np.mean(self._original[seen] - self._new[seen]))
        whole = self._seen == len(self._order)
        if self._verdict is None:
            raise WrongValue("the verdict is not known yet", where="SequentialTest.result()")
        return Verdict(self._verdict, total / len(self._original), self._seen, whole)


def sequential_verdict(test: SequentialTest, evaluate: Callable[[Indices], Scores]) -> Verdict:
    """Run ``test`` to its end; ``evaluate`` gives the scores of the samples it is asked for."""
    while (indices := test.next_indices()) is not None:
        test.observe(evaluate(indices))
    return test.result()
