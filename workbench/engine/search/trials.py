"""The judge of a search: it has configurations measured, remembers them, and tells what it does.

Source: specification chapter 20 sections 5, 6.3 and 9.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from workbench.engine.errors import WrongValue
from workbench.engine.events import (
    BracketMoved,
    SearchPhase,
    TrialFinished,
    TrialStarted,
    check,
    emit,
)
from workbench.engine.graph.capture import copy_model
from workbench.engine.search.identity import digest_of, identity_of, model_digest
from workbench.engine.search.judgement import judgement, number_of, storable
from workbench.engine.search.judging import Choice, Scores, Trial
from workbench.engine.search.measuring import (
    SamplePlan,
    evaluate_samples,
    evaluate_whole,
    has_samples,
    mean_of,
)
from workbench.engine.search.models import Factors
from workbench.engine.search.runner import Key, Measured, Runner
from workbench.engine.search.setup import SearchSetup
from workbench.engine.search.statistics import Statistics

log = logging.getLogger("workbench.engine.search")

Keep = Callable[[Key, Trial], None]


class TrialJudge:
    """Implements ``judging.Judge``. ``history``: what was asked for, in that order."""

    def __init__(self, setup: SearchSetup) -> None:
        self._setup = setup
        self._base = ""
        # Fingerprints cost a look at every weight; without a file nothing outlives this search.
        if setup.cache.path is not None:
            self._base = digest_of(
                model_digest(setup.model), identity_of(setup.evaluator), setup.backend
            )
        self.statistics = Statistics(setup, self._base)
        self.original: Any = None
        self.history: list[Trial] = []
        self.layers: tuple[str, ...] = ()
        self._plan: SamplePlan | None = None
        self._runner: Runner | None = None
        self._final_equivalents = 0.0
        self._known: dict[Key, Trial] = {}
        self._asked: set[Key] = set()
        self._number = 0
        self._low, self._high = 0, 0

    def measure_original(self) -> None:
        """Errors: ``ValueError`` when the original does not satisfy its own target."""
        setup = self._setup
        emit(setup.on_event, SearchPhase("original"))
        known: Mapping[str, Any] | None = None
        if setup.cache.path is not None:
            known = setup.cache.get("original", self._base)
        seconds = 0.0
        if has_samples(setup.evaluator):
            scores, known = self._original_scores()
            limits = getattr(setup.evaluator, "score_range", None)
            self._plan = SamplePlan(scores, None, self._early_loss(), limits, setup.seed)
            self.original = mean_of(scores)
        elif known is not None:
            self.original = known["metric"]
        else:
            outcome = evaluate_whole(setup.evaluator, copy_model(setup.model))
            self.original, seconds = outcome.metric, outcome.seconds
            if entry := storable(self.original):
                setup.cache.put("original", self._base, entry)
        log.info("metric of the original model: %s", self.original)
        satisfied, _ = self.judged(self.original)
        if not satisfied:
            raise WrongValue(
                "metric_eval(original, original) is not satisfied",
                where="model_evaluator",
                hint="the original model must satisfy the target against itself; "
                "check metric_eval.",
            )
        event = TrialFinished(
            -1,
            "original",
            setup.config.enabled(),
            number_of(self.original),
            0.0,
            True,
            seconds,
            cached=known is not None,
        )
        emit(setup.on_event, event)
        check(setup.cancel)

    def _original_scores(self) -> tuple[Scores, Mapping[str, Any] | None]:
        setup = self._setup
        key = digest_of(self._base, "original")
        total = getattr(setup.evaluator, "sample_count", None)
        known: Mapping[int, float] = setup.cache.scores(key)
        cached = total is not None and len(known) == int(total)
        if not cached:
            known = evaluate_samples(setup.evaluator, copy_model(setup.model), None)
            setup.cache.add_scores(key, known)
        return np.array([known[i] for i in range(len(known))]), {} if cached else None

    def _early_loss(self) -> float | None:
        evaluator = self._setup.evaluator
        if not self._setup.early or getattr(evaluator, "sample_count", None) is None:
            return None
        return self.max_loss

    def measure_everything(self) -> Trial:
        """The trial with every layer quantised, on every sample."""
        setup = self._setup
        factors = self.statistics.prepare()
        self.layers = tuple(name for name in setup.config.layers if name in factors.record.layers)
        self._high = len(self.layers)
        self._runner = Runner(setup, self._base, factors, self._plan, self.judged)
        unknown = sorted(set(setup.pins() if setup.pins else ()) - set(setup.config.layers))
        if unknown:
            raise WrongValue(f"no layer named {', '.join(unknown)}", where="pins")
        emit(setup.on_event, SearchPhase("all"))
        nothing: Key = frozenset()
        self._judge([nothing], "all", full=True)
        first = self._ask(nothing, "all")
        log.info("metric with everything quantised: %s", first.metric)
        if self._plan is not None:
            known = setup.cache.scores(self._runner.cache_key(nothing))
            quantized = np.array([known[i] for i in range(len(self._plan.original))])
            self._plan = replace(self._plan, quantized=quantized)
            self._runner.use(self._plan)
        return first

    @property
    def ranking(self) -> Mapping[str, float]:
        values = self.statistics.ranking(self.layers)
        sign = 1.0 if self._setup.sensitivity.larger_is_better else -1.0
        return {name: sign * values[name] for name in self.layers}

    @property
    def pins(self) -> Mapping[str, bool]:
        pins = self._setup.pins() if self._setup.pins else {}
        return {name: bool(pins[name]) for name in self.layers if name in pins}

    @property
    def max_loss(self) -> float | None:
        value = getattr(self._setup.evaluator, "max_loss", None)
        return None if value is None else float(value)

    @property
    def equivalents(self) -> float:
        return self._final_equivalents + (self._runner.equivalents if self._runner else 0.0)

    @property
    def workers(self) -> int:
        return self._setup.workers.count if self._setup.workers else 1

    def trial(
        self, float_layers: Collection[str], phase: str = "search", *, full: bool = False
    ) -> Trial:
        key = self.held(float_layers)
        self._judge([key], phase, full=full)
        return self._ask(key, phase)

    def trials(self, candidates: Sequence[Collection[str]], phase: str = "search") -> list[Trial]:
        keys = [self.held(candidate) for candidate in candidates]
        self._judge(keys, phase)
        return [self._ask(key, phase) for key in keys]

    def prefetch(self, candidates: Sequence[Collection[str]]) -> None:
        """Judge what may be asked next, side by side; only what is asked joins the history."""
        self._judge([self.held(candidate) for candidate in candidates], "speculative")

    def scores(
        self, float_layers: Collection[str] | None, indices: Sequence[int] | None = None
    ) -> Scores | None:
        if self._plan is None:
            return None
        total = len(self._plan.original)
        wanted = list(range(total)) if indices is None else [int(i) for i in indices]
        if float_layers is None:
            return self._plan.original[wanted]
        assert self._runner is not None
        key = self.held(float_layers)
        self._runner.scores(key, wanted)
        known = self._setup.cache.scores(self._runner.cache_key(key))
        return np.array([known[i] for i in wanted])

    def held(self, float_layers: Collection[str]) -> Key:
        """The proposal with the pins applied. Errors: ``ValueError`` for unknown layers."""
        unknown = sorted(set(float_layers) - set(self.layers))
        if unknown:
            raise WrongValue(f"no layer named {', '.join(unknown)} to search", where="strategy")
        pins = self.pins
        floats = {name for name in float_layers if not pins.get(name, False)}
        return frozenset(floats | {name for name, on in pins.items() if not on})

    def final(self, factors: Factors, float_layers: Collection[str]) -> Trial:
        """Judge a configuration with the factors of its own calibration, on every sample."""
        runner = Runner(self._setup, self._base, factors, self._plan, self.judged)
        return self._final(runner, frozenset(float_layers))

    def _final(self, runner: Runner, key: Key) -> Trial:
        found: dict[Key, Trial] = {}
        self._run(runner, [key], "final", early=False, keep=found.__setitem__)
        self._final_equivalents += runner.equivalents
        trial = found[key]
        if self.history and dict(self.history[-1].choices) == dict(trial.choices):
            self.history.pop()
        self.history.append(trial)
        return trial

    def give_up(self) -> None:
        """The last entry of a history that ends with everything in float."""
        satisfied, loss = self.judged(self.original)
        choices = self._choices(frozenset(self.layers))
        self.history.append(Trial(choices, satisfied, loss, self.original, "final"))

    def judged(self, metric: Any) -> tuple[bool, float]:
        return judgement(self._setup.evaluator.metric_eval(self.original, metric))

    def _ask(self, key: Key, phase: str) -> Trial:
        trial = replace(self._known[key], phase=phase)
        if key not in self._asked:
            self._asked.add(key)
            self.history.append(trial)
            verdict = (trial.satisfied, trial.loss)
            log.info("%s: %d float, %s", phase, len(trial.float_layers), verdict)
        return trial

    def _judge(self, keys: Sequence[Key], phase: str, *, full: bool = False) -> None:
        todo = [
            key
            for key in dict.fromkeys(keys)
            if key not in self._known or (full and self._known[key].share < 1.0)
        ]
        if todo:
            assert self._runner is not None
            keep = self._known.__setitem__
            self._run(self._runner, todo, phase, early=not full, keep=keep)

    def _run(
        self, runner: Runner, keys: Sequence[Key], phase: str, *, early: bool, keep: Keep
    ) -> None:
        on_event = self._setup.on_event
        numbers = {key: self._number + i for i, key in enumerate(keys)}
        self._number += len(keys)

        def started(key: Key) -> None:
            floats = (name for name, c in self._choices(key).items() if not c.quantize)
            emit(on_event, TrialStarted(numbers[key], phase, tuple(floats)))

        def done(key: Key, measured: Measured) -> None:
            outcome = measured.outcome
            trial = Trial(
                self._choices(key),
                measured.satisfied,
                measured.loss,
                outcome.metric,
                phase,
                outcome.seconds,
                outcome.share,
                measured.cached,
            )
            keep(key, trial)
            event = TrialFinished(
                numbers[key],
                phase,
                trial.float_layers,
                number_of(trial.metric),
                trial.loss,
                trial.satisfied,
                trial.seconds,
                trial.share,
                trial.cached,
                trial.variants,
            )
            emit(on_event, event)
            self._move_bracket(key, trial.satisfied)

        runner.run(keys, early=early, on_start=started, on_done=done)

    def _search_order(self) -> Sequence[str]:
        if not self.statistics.ranked:
            return self.layers
        return sorted(self.layers, key=self.statistics.sensitive_first)

    def _choices(self, key: Key) -> dict[str, Choice]:
        return {name: Choice(name not in key) for name in self._search_order()}

    def _move_bracket(self, key: Key, satisfied: bool) -> None:
        """Only a miss of the most sensitive layers says that more are needed."""
        if satisfied:
            self._high = min(self._high, len(key))
        elif set(self._search_order()[: len(key)]) == key:
            self._low = max(self._low, len(key) + 1)
        self._low = min(self._low, self._high)
        emit(self._setup.on_event, BracketMoved(self._low, self._high))
