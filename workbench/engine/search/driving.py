"""Runs strategies that do not ask the judge themselves: the reference's and users' own.

Source: specification chapter 20 section 6.3; decision 13.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

from workbench.engine.errors import WrongType, WrongValue
from workbench.engine.search.judging import Choice, Judge, ProposingStrategy, SearchStrategy, Trial
from workbench.engine.search.strategy import AutoCalibrationStrategyBase, BinarySearchStrategy


class ReferenceStrategy(SearchStrategy):
    """The loop of section 6.3 around an ``AutoCalibrationStrategyBase``.

    Judgements on part of the samples are only shown to our own bisection: another strategy may
    read the loss. ``counts``: numbers of float layers that were judged.

    Errors: ``TypeError`` for a proposal of another form.
    """

    def __init__(self, strategy: AutoCalibrationStrategyBase) -> None:
        self._strategy = strategy
        self._full = not isinstance(strategy, BinarySearchStrategy)
        self.counts: set[int] = set()

    def search(self, judge: Judge, first: Trial) -> Collection[str] | None:
        pins = judge.pins
        ranking = {name: v for name, v in judge.ranking.items() if name not in pins}
        if not ranking:
            return None
        self._strategy.initialize(ranking)
        judged = (first.satisfied, first.loss)
        while True:
            proposal = self._strategy.update_quant_config(judged)
            floats, stop = _read(proposal)
            if stop:
                return floats
            if len(floats) == len(ranking):
                # The reference takes "everything in float" without a look; so the answer is known.
                return None if len(ranking) == len(judge.layers) else floats
            self._look_ahead(judge, floats)
            trial = judge.trial(floats, full=self._full)
            self.counts.add(len(floats))
            judged = (trial.satisfied, trial.loss)

    def _look_ahead(self, judge: Judge, floats: Collection[str]) -> None:
        """With workers to spare, bisection's two possible next cuts are judged as well."""
        if judge.workers < 2 or not isinstance(self._strategy, BinarySearchStrategy):
            return
        candidates = [floats]
        for satisfied in (False, True)[: judge.workers - 1]:
            proposal = copy.deepcopy(self._strategy).update_quant_config((satisfied, 0.0))
            following, stop = _read(proposal)
            if not stop and len(following) < len(proposal["roll_back_config"]):
                candidates.append(following)
        judge.prefetch(candidates)


class PlugInStrategy(SearchStrategy):
    """Runs a user's ``ProposingStrategy``; its answer is the smallest passing proposal."""

    def __init__(self, strategy: ProposingStrategy) -> None:
        self._strategy = strategy

    def search(self, judge: Judge, first: Trial) -> Collection[str] | None:
        history = [first]
        while (proposal := self._strategy.propose(tuple(history))) is not None:
            trial = judge.trial(_floats(proposal), full=True)
            history.append(trial)
            self._strategy.observe(trial)
        passing = [trial for trial in history if trial.satisfied]
        if not passing:
            return None
        return min(passing, key=lambda t: (len(t.float_layers), t.loss)).float_layers


def _floats(proposal: Mapping[str, Choice]) -> list[str]:
    for name, choice in proposal.items():
        if not isinstance(choice, Choice):
            raise WrongType(
                f"propose() gave {choice!r} for layer {name}; allowed: a Choice", where="strategy"
            )
        if choice.variant:
            raise WrongValue(
                f"this search has no variant {choice.variant!r} (layer {name})",
                where="strategy",
                hint="leave variant empty: the layer's own settings.",
            )
    return [name for name, choice in proposal.items() if not choice.quantize]


def _read(proposal: Any) -> tuple[list[str], bool]:
    try:
        config, stop = proposal["roll_back_config"], bool(proposal["stop_flag"])
        return [str(name) for name, on in config.items() if not on], stop
    except (TypeError, KeyError, AttributeError):
        raise WrongType(
            f"update_quant_config returned {proposal!r}; allowed: {{'stop_flag': bool, "
            "'roll_back_config': {layer: quantised}}",
            where="strategy",
        ) from None
