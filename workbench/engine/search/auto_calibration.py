"""Auto-calibration: leave as few layers as possible in float so that the accuracy holds.

Source: specification chapter 20; decision 13 (statistics are collected once, the accepted
configuration is calibrated and evaluated once for real).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from workbench.engine.errors import Cancelled, WrongValue
from workbench.engine.events import CancelToken, Notice, OnEvent, SearchPhase, emit
from workbench.engine.files.config import QuantConfig
from workbench.engine.flows.calibration import Calibration
from workbench.engine.flows.layer_data import Batch
from workbench.engine.graph.capture import Captured
from workbench.engine.search.cache import TrialCache
from workbench.engine.search.evaluator import AutoCalibrationEvaluatorBase
from workbench.engine.search.judging import SearchStrategy, Trial
from workbench.engine.search.models import from_calibration
from workbench.engine.search.pareto import TRIALS, ParetoStrategy, search_pareto
from workbench.engine.search.result import SearchCancelled, SearchResult
from workbench.engine.search.sensitivity import SensitivityBase
from workbench.engine.search.setup import Pins, SearchSetup
from workbench.engine.search.strategies import Strategy, resolve_sensitivity, resolve_strategy
from workbench.engine.search.trials import TrialJudge
from workbench.engine.search.workers import Workers

log = logging.getLogger("workbench.engine.search")


def search_configuration(
    model: nn.Module,
    captured: Captured,
    config: QuantConfig,
    evaluator: AutoCalibrationEvaluatorBase,
    *,
    strategy: Strategy = "BinarySearch",
    sensitivity: str | SensitivityBase = "CosineSimilarity",
    objective: str = "size",
    pareto_trials: int = TRIALS,
    evaluate_backend: str = "torch",
    write_ranking: str = "always",
    cache: TrialCache | None = None,
    executor: Any = None,
    pins: Pins | None = None,
    early: bool = True,
    dump_folder: Path | None = None,
    calibration_data: Sequence[Batch] | None = None,
    compat: bool = False,
    memory_budget_mb: int = 256,
    seed: int = 0,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> SearchResult:
    """Find the configuration. ``accuracy_based_auto_calibration`` writes the files.

    ``model`` is the user's: a copy of it is measured first. One calibration serves every trial,
    a second one makes the accepted configuration's record; if that one misses the target, layers
    go on being left in float, next in the ranking, each step calibrated and measured for real.
    ``cache`` keeps every trial, so that a search that was stopped goes on where it was.
    ``executor`` runs independent trials side by side; the answer does not depend on it. ``pins``
    holds layers quantised (True) or in float (False) and is asked again before every trial.
    ``early`` allows verdicts from a part of the samples, when the evaluator has
    ``evaluate_samples``, ``sample_count`` and ``max_loss``. ``calibration_data``: more batches for
    learning the rounding of weights than the captured example.

    ``strategy`` 'Pareto' looks at ``pareto_trials`` configurations in which layers also differ in
    weight bits and activation algorithm; the result has the metric against ``objective`` ('size',
    'bops' or 'latency'), and the accepted configuration is the cheapest that satisfies.

    Errors: ``ValueError`` when the original does not satisfy against itself; ``TypeError`` for a
    ``metric_eval`` result that is no pair of bool and number; ``SearchCancelled``.
    """
    _require("evaluate_backend", evaluate_backend, ("torch", "onnx"))
    _require("write_ranking", write_ranking, ("always", "needed"))
    setup = SearchSetup(
        model,
        captured,
        config,
        evaluator,
        resolve_sensitivity(sensitivity),
        backend=evaluate_backend,
        options={"compat": compat, "memory_budget_mb": memory_budget_mb},
        calibration_data=calibration_data,
        seed=seed,
        cache=cache or TrialCache(),
        workers=None if executor is None else Workers(executor),
        pins=pins,
        early=early,
        dump_folder=dump_folder,
        on_event=on_event,
        cancel=cancel,
    )
    chosen = resolve_strategy(strategy, objective=objective, pareto_trials=pareto_trials)
    if isinstance(chosen, ParetoStrategy):
        return search_pareto(setup, chosen)
    judge = TrialJudge(setup)
    try:
        return _search(setup, judge, chosen, rank_always=write_ranking == "always")
    except Cancelled as error:
        best = smallest_passing(judge.history)
        accepted = None if best is None else _with(setup, judge, best.float_layers)
        trials, ranking = tuple(judge.history), judge.statistics.sorted_ranking(judge.layers)
        raise SearchCancelled(str(error), accepted, trials, ranking) from error


def _search(
    setup: SearchSetup, judge: TrialJudge, strategy: SearchStrategy, *, rank_always: bool
) -> SearchResult:
    statistics = judge.statistics
    judge.measure_original()
    first = judge.measure_everything()
    if rank_always:
        _ = judge.ranking
    start = judge.trial(()) if judge.held(()) else first
    answer: frozenset[str] | None = judge.held(())
    if not start.satisfied:
        emit(setup.on_event, SearchPhase("search"))
        found = strategy.search(judge, start)
        answer = None if found is None else judge.held(found)
        _report_non_monotone(setup, judge.history)
    emit(setup.on_event, SearchPhase("final"))

    def result(
        calibration: Calibration | None, floats: frozenset[str], metric: Any
    ) -> SearchResult:
        if calibration is None:
            log.info("no quantised model: every layer stays float; the target may be too hard")
        else:
            log.info("metric of the accepted configuration: %s", metric)
        return SearchResult(
            _with(setup, judge, floats),
            calibration,
            tuple(judge.history),
            judge.statistics.sorted_ranking(judge.layers),
            judge.original,
            first.metric,
            metric,
            judge.equivalents,
        )

    if answer is not None and not answer:
        calibration = statistics.calibration()
        if from_calibration(calibration).digest() == statistics.prepare().digest():
            log.info("all layers quantised satisfies the target")
            return result(calibration, answer, first.metric)
    statistics.release()
    while answer is not None and len(answer) < len(judge.layers):
        calibration = statistics.calibrate(_with(setup, judge, answer))
        trial = judge.final(from_calibration(calibration), answer)
        if trial.satisfied:
            return result(calibration, answer, trial.metric)
        log.info("calibrated for real, it misses the target; leaving one more layer in float")
        ranking, pins = judge.ranking, judge.pins
        free = [name for name in judge.layers if name not in answer and name not in pins]
        following = min(free, key=lambda name: ranking[name], default=None)
        answer = None if following is None else answer | {following}
    judge.give_up()
    return result(None, frozenset(judge.layers), judge.original)


def _with(
    setup: SearchSetup, judge: TrialJudge, floats: Sequence[str] | frozenset[str]
) -> QuantConfig:
    off = {*floats, *judge.statistics.never_run}
    return setup.config.with_enabled(
        {name: name not in off for name in (*judge.layers, *judge.statistics.never_run)}
    )


def smallest_passing(trials: Sequence[Trial]) -> Trial | None:
    """Of the passing trials the one with the fewest float layers, then the smallest loss."""
    passing = (trial for trial in trials if trial.satisfied)
    return min(passing, key=lambda t: (len(t.float_layers), t.loss), default=None)


def non_monotone(trials: Sequence[Trial]) -> list[tuple[Trial, Trial]]:
    """Pairs (passes, misses) in which the one that misses has more layers in float."""
    passing = [trial for trial in trials if trial.satisfied]
    missing = [trial for trial in trials if not trial.satisfied]
    return [
        (good, bad)
        for good in passing
        for bad in missing
        if set(good.float_layers) < set(bad.float_layers)
    ]


def _report_non_monotone(setup: SearchSetup, trials: Sequence[Trial]) -> None:
    found = non_monotone(trials)
    if found:
        good, bad = found[0]
        more = set(bad.float_layers) - set(good.float_layers)
        notice = (
            f"more float layers can be worse here: {len(good.float_layers)} pass, but leaving "
            f"{', '.join(sorted(more))} in float too misses the target ({len(found)} such pairs)"
        )
        log.warning(notice)
        emit(setup.on_event, Notice(notice))


def _require(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        listed = ", ".join(map(repr, allowed))
        raise WrongValue(f"{name} is {value!r}; allowed: {listed}", where="search")
