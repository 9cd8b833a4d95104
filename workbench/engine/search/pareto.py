"""``Pareto``: the metric against size, bit-operations or latency over choices for each layer.

Source: specification of this project's issue 3; decisions 13 and 17.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from workbench.engine.errors import Cancelled, WrongType, WrongValue
from workbench.engine.events import Notice, ParetoPointFound, Progress, SearchPhase, check, emit
from workbench.engine.files.config import QuantConfig
from workbench.engine.search.costs import (
    OBJECTIVES,
    CostTable,
    Options,
    QdqMeter,
    cost_table,
    latency_table,
)
from workbench.engine.search.evolution import require_optuna
from workbench.engine.search.judgement import number_of
from workbench.engine.search.judging import Choice, ParetoPoint, Trial
from workbench.engine.search.models import from_calibration
from workbench.engine.search.pareto_judge import ParetoJudge
from workbench.engine.search.proposals import BATCH, Choices, Proposals, frozen
from workbench.engine.search.result import SearchCancelled, SearchResult
from workbench.engine.search.setup import SearchSetup
from workbench.engine.search.surrogate import non_dominated
from workbench.engine.search.variant_table import variant_table
from workbench.engine.search.variants import VariantFactors, check_variants, with_choices

log = logging.getLogger("workbench.engine.search")

TRIALS = 60
VARIANTS = ("int4", "hfmg", "int4+hfmg")


@dataclass(frozen=True)
class ParetoStrategy:
    """What to search: ``trials`` configurations, at least one batch, are judged.

    ``objective``: 'size' (bytes of parameters), 'bops' (bit-operations) or 'latency' (the median
    time of the QDQ file in ONNX Runtime here). ``variants``: what a layer may be beside float and
    the configuration's own settings; see ``variants.CHANGES``, several joined by "+". Each costs
    one calibration.

    Errors: ``ValueError`` for an unknown objective or variant and for a budget below one trial;
    ``TypeError`` for a budget that is no whole number; ``RuntimeError`` without Optuna.
    """

    objective: str = "size"
    trials: int = TRIALS
    variants: Sequence[str] = VARIANTS

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            allowed = ", ".join(map(repr, OBJECTIVES))
            raise WrongValue(f"objective is {self.objective!r}; allowed: {allowed}", where="search")
        if isinstance(self.trials, bool) or not isinstance(self.trials, int):
            raise WrongType(
                f"pareto_trials is {self.trials!r}; allowed: a whole number", where="search"
            )
        if self.trials < 1:
            raise WrongValue(f"pareto_trials is {self.trials}; allowed: 1 and up", where="search")
        check_variants(self.variants)
        require_optuna()


def search_pareto(setup: SearchSetup, strategy: ParetoStrategy) -> SearchResult:
    """Find the front, then calibrate and judge the cheapest point that satisfies, for real.

    If that misses the target, the next one has its turn. With objective 'latency' the search goes
    by expected times; those of configurations that nothing known beats are measured.
    Errors: as ``search_configuration``.
    """
    judge = ParetoJudge(setup)
    search = _Search(setup, judge, strategy)
    try:
        return search.run()
    except Cancelled as error:
        best = next(iter(search.answers()), None)
        config = None if best is None else search.config(best.choices)
        ranking = judge.statistics.sorted_ranking(judge.layers)
        raise SearchCancelled(
            str(error), config, tuple(judge.history), ranking, search.found(), strategy.objective
        ) from error


class _Search:
    def __init__(self, setup: SearchSetup, judge: ParetoJudge, strategy: ParetoStrategy) -> None:
        self._setup, self._judge, self._strategy = setup, judge, strategy
        self._points: dict[frozenset[tuple[str, Choice]], ParetoPoint] = {}
        self._announced: set[frozenset[tuple[str, Choice]]] = set()
        self._costs = CostTable(0.0, {})
        self._meter: QdqMeter | None = None

    def run(self) -> SearchResult:
        setup, judge = self._setup, self._judge
        judge.measure_original()
        first = judge.measure_everything()
        ranking = judge.ranking
        emit(setup.on_event, SearchPhase("variants"))
        table = variant_table(setup, judge.statistics, judge.layers, self._strategy.variants)
        judge.open(table.factors, first)
        self._price(table.options, table.factors)
        proposals = Proposals(
            table.options,
            table.errors,
            self._costs,
            ranking,
            max_loss=judge.max_loss,
            seed=setup.seed,
        )
        emit(setup.on_event, SearchPhase("search"))
        satisfied, loss = judge.judged(judge.original)
        nothing = {name: Choice(False) for name in judge.layers}
        self._points[frozen(nothing)] = self._point(
            Trial(nothing, satisfied, loss, judge.original, "original")
        )
        spent = 0
        while spent < self._strategy.trials:
            check(setup.cancel)
            batch = proposals.batch(judge.pins)[: min(BATCH, self._strategy.trials - spent)]
            if not batch:
                break
            for trial in judge.judge(batch):
                self._points[frozen(trial.choices)] = self._point(trial)
            self._find_front()
            for choices in batch:
                proposals.observe(self._points[frozen(choices)])
            spent += len(batch)
            emit(setup.on_event, Progress("pareto trials", spent, self._strategy.trials))
        return self._accept(first)

    def config(self, choices: Choices) -> QuantConfig:
        layers = self._setup.captured.layers
        config = with_choices(self._setup.config, layers, choices)
        return config.with_enabled(dict.fromkeys(self._judge.statistics.never_run, False))

    def answers(self) -> list[ParetoPoint]:
        """What satisfies and quantises something, cheapest first."""
        good = [p for p in self._points.values() if p.satisfied and _quantizes(p.choices)]
        return sorted(good, key=lambda p: (not p.measured, p.cost, p.loss))

    def _price(self, options: Options, factors: VariantFactors) -> None:
        setup, objective = self._setup, self._strategy.objective
        if objective != "latency":
            self._judge.statistics.release()
            self._costs = cost_table(setup, options, objective)
            return
        emit(setup.on_event, SearchPhase("latency"))
        sidecar = self._judge.statistics.calibration().sidecar()
        self._judge.statistics.release()
        self._meter = QdqMeter(setup, factors, sidecar, self._judge.base)
        self._costs = latency_table(setup, options, self._meter)

    def _point(self, trial: Trial) -> ParetoPoint:
        known = self._points.get(frozen(trial.choices))
        cost = self._costs.cost(trial.choices)
        if known is not None and known.measured:
            cost = known.cost
        measured = self._meter is None or (known is not None and known.measured)
        return ParetoPoint(
            trial.choices, trial.metric, trial.loss, cost, trial.satisfied, measured=measured
        )

    def _find_front(self) -> None:
        """Mark the front; a point that joins it has its latency measured, and is announced."""
        while True:
            keys = [key for key, point in self._points.items() if math.isfinite(point.loss)]
            losses = np.array([self._points[key].loss for key in keys])
            costs = np.array([self._points[key].cost for key in keys])
            front = {keys[i] for i in non_dominated(losses, costs)}
            unmeasured = [key for key in front if not self._points[key].measured]
            if not unmeasured:
                break
            assert self._meter is not None
            for key in sorted(unmeasured, key=keys.index):
                check(self._setup.cancel)
                cost = self._meter.milliseconds(self._points[key].choices)
                self._points[key] = replace(self._points[key], cost=cost, measured=True)
        for key, point in self._points.items():
            self._points[key] = replace(point, on_front=key in front)
            if key in front and key not in self._announced:
                self._announced.add(key)
                self._announce(point)

    def _announce(self, point: ParetoPoint) -> None:
        quantized = {n: c for n, c in point.choices.items() if c.quantize}
        event = ParetoPointFound(
            tuple(name for name in point.choices if name not in quantized),
            tuple((name, c.variant) for name, c in quantized.items() if c.variant),
            number_of(point.metric),
            point.loss,
            self._strategy.objective,
            point.cost,
            point.satisfied,
        )
        emit(self._setup.on_event, event)

    def _accept(self, first: Trial) -> SearchResult:
        setup, judge = self._setup, self._judge
        emit(setup.on_event, SearchPhase("final"))
        answers = self.answers()
        plain = next(p for p in self._points.values() if not _quantizes(p.choices))
        if answers and plain.cost <= answers[0].cost:
            notice = "the float model costs no more than the cheapest configuration that satisfies"
            log.warning(notice)
            emit(setup.on_event, Notice(notice))
        config = setup.config.with_enabled(
            dict.fromkeys((*judge.layers, *judge.statistics.never_run), False)
        )
        calibration, metric = None, judge.original
        for point in answers:
            wanted = self.config(point.choices)
            candidate = judge.statistics.calibrate(wanted)
            final = judge.finally_judged(from_calibration(candidate), point.choices)
            if final.satisfied:
                config, calibration, metric = wanted, candidate, final.metric
                log.info("metric of the accepted configuration: %s", metric)
                break
            log.info("calibrated for real, it misses the target; trying the next point")
        else:
            log.info("no quantised model: every layer stays float; the target may be too hard")
            judge.give_up()
        return SearchResult(
            config,
            calibration,
            tuple(judge.history),
            judge.statistics.sorted_ranking(judge.layers),
            judge.original,
            first.metric,
            metric,
            judge.equivalents,
            self.found(),
            self._strategy.objective,
        )

    def found(self) -> tuple[ParetoPoint, ...]:
        return tuple(sorted(self._points.values(), key=lambda p: (p.cost, p.loss)))


def _quantizes(choices: Choices) -> bool:
    return any(choice.quantize for choice in choices.values())
