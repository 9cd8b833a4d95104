"""Auto-calibration: leave as few layers as possible in float so that the accuracy holds.

Source: specification chapter 20; decision 13 (statistics are collected once, the accepted
configuration is calibrated and evaluated once for real).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from workbench.engine.errors import WrongState, WrongType, WrongValue
from workbench.engine.events import (
    BracketMoved,
    CancelToken,
    Notice,
    OnEvent,
    RankingKnown,
    TrialFinished,
    TrialStarted,
    check,
    emit,
)
from workbench.engine.export.torch_module import to_fake_quant
from workbench.engine.files.config import QuantConfig
from workbench.engine.files.record import Record
from workbench.engine.files.sidecar import Sidecar
from workbench.engine.flows.calibration import Calibration
from workbench.engine.graph.capture import Captured, copy_model
from workbench.engine.search.evaluator import AutoCalibrationEvaluatorBase
from workbench.engine.search.inputs import LayerInputs
from workbench.engine.search.sensitivity import BY_NAME, SensitivityBase
from workbench.engine.search.strategy import AutoCalibrationStrategyBase, BinarySearchStrategy

log = logging.getLogger("workbench.engine.search")


@dataclass(frozen=True)
class Trial:
    """One judged configuration. ``quantized``: layer name to quantised, in search order."""

    quantized: Mapping[str, bool]
    satisfied: bool
    loss: float
    metric: Any
    phase: str

    @property
    def float_layers(self) -> tuple[str, ...]:
        return tuple(name for name, on in self.quantized.items() if not on)


@dataclass(frozen=True)
class SearchResult:
    """``calibration`` is the accepted configuration's own; None when every layer stays float."""

    config: QuantConfig
    calibration: Calibration | None
    trials: tuple[Trial, ...]
    ranking: Mapping[str, float]
    original_metric: Any
    global_metric: Any
    final_metric: Any

    @property
    def satisfied(self) -> bool:
        return self.calibration is not None

    @property
    def record(self) -> Record | None:
        return self.calibration.finalize() if self.calibration else None

    @property
    def sidecar(self) -> Sidecar | None:
        return self.calibration.sidecar() if self.calibration else None


@dataclass
class _Search:
    captured: Captured
    config: QuantConfig
    evaluator: AutoCalibrationEvaluatorBase
    options: Mapping[str, Any]
    on_event: OnEvent | None
    cancel: CancelToken | None
    original: Any = None
    trials: list[Trial] = field(default_factory=list)
    _judged: dict[frozenset[str], Trial] = field(default_factory=dict)
    _low: int = 0
    _high: int | None = None

    def calibrate(self, config: QuantConfig, inputs: LayerInputs | None = None) -> Calibration:
        calibration = Calibration(
            self.captured,
            config,
            on_layer_input=inputs.see if inputs else None,
            on_event=self.on_event,
            cancel=self.cancel,
            **self.options,
        )
        self.evaluator.calibration(calibration.model)
        calibration.finalize()
        return calibration

    def judge(self, metric: Any) -> tuple[bool, float]:
        return judgement(self.evaluator.metric_eval(self.original, metric))

    def evaluate(
        self, calibration: Calibration, quantized: Mapping[str, bool], phase: str
    ) -> Trial:
        """Evaluate the layers of ``quantized`` that are true with ``calibration``'s factors."""
        check(self.cancel)
        floats = tuple(n for n, on in quantized.items() if not on)
        key = frozenset(floats)
        known = self._judged.get(key)
        if known is not None and phase == "search":
            return known
        number = len(self.trials)
        emit(self.on_event, TrialStarted(number, phase, floats))
        start = time.perf_counter()
        names = [n for n, on in quantized.items() if on]
        metric = self.evaluator.evaluate(
            to_fake_quant(calibration.folded, calibration.finalize(), names)
        )
        satisfied, loss = self.judge(metric)
        trial = Trial(dict(quantized), satisfied, loss, metric, phase)
        self._judged[key] = trial
        self._append(trial)
        emit(
            self.on_event,
            TrialFinished(
                number,
                phase,
                floats,
                number_of(metric),
                loss,
                satisfied,
                time.perf_counter() - start,
            ),
        )
        self._move_bracket(len(floats), satisfied)
        return trial

    def _append(self, trial: Trial) -> None:
        last = self.trials[-1] if self.trials else None
        if trial.phase == "final" and last and set(last.float_layers) == set(trial.float_layers):
            self.trials[-1] = trial
        else:
            self.trials.append(trial)

    def append_all_float(self, names: Mapping[str, bool]) -> None:
        satisfied, loss = self.judge(self.original)
        self.trials.append(
            Trial(dict.fromkeys(names, False), satisfied, loss, self.original, "final")
        )

    def _move_bracket(self, floats: int, satisfied: bool) -> None:
        if satisfied:
            self._high = floats if self._high is None else min(self._high, floats)
        else:
            self._low = max(self._low, floats + 1)
        high = len(self.config.enabled()) if self._high is None else self._high
        emit(self.on_event, BracketMoved(min(self._low, high), high))


def search_configuration(
    model: nn.Module,
    captured: Captured,
    config: QuantConfig,
    evaluator: AutoCalibrationEvaluatorBase,
    *,
    strategy: str | AutoCalibrationStrategyBase = "BinarySearch",
    sensitivity: str | SensitivityBase = "CosineSimilarity",
    compat: bool = False,
    memory_budget_mb: int = 256,
    seed: int = 0,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> SearchResult:
    """Find the configuration; writes nothing. ``accuracy_based_auto_calibration`` writes the files.

    ``model`` is the user's: a copy of it is measured first. One calibration serves every trial,
    a second one makes the accepted configuration's record; if that one misses the target, layers
    go on being left in float, next in the ranking, each step calibrated and measured for real.

    Errors: ``ValueError`` when the original does not satisfy against itself; ``TypeError`` for a
    ``metric_eval`` result that is no pair of bool and number.
    """
    chosen = resolve_strategy(strategy)
    metric_of_layer = resolve_sensitivity(sensitivity)
    options = {"compat": compat, "memory_budget_mb": memory_budget_mb, "seed": seed}
    search = _Search(captured, config, evaluator, options, on_event, cancel)
    search.original = evaluator.evaluate(copy_model(model))
    satisfied, _ = search.judge(search.original)
    if not satisfied:
        raise WrongValue(
            "metric_eval(original, original) is not satisfied",
            where="model_evaluator",
            hint="the original model must satisfy the target against itself; check metric_eval.",
        )
    emit(
        on_event,
        TrialFinished(-1, "original", config.enabled(), number_of(search.original), 0.0, True, 0.0),
    )
    check(cancel)
    inputs = LayerInputs(memory_budget_mb * 2**20)
    calibration = search.calibrate(config, inputs)
    enabled = tuple(calibration.finalize().layers)
    everything = {name: True for name in config.layers if name in set(enabled)}
    first = search.evaluate(calibration, everything, "all")
    if inputs.truncated:
        notice = (
            f"sensitivity of {len(inputs.truncated)} large layers comes from a part of the "
            "calibration batches (memory_budget_mb)"
        )
        log.info(notice)
        emit(on_event, Notice(notice))
    quantized = to_fake_quant(calibration.folded, calibration.finalize())
    ranking = inputs.sensitivities(
        calibration.folded, quantized, list(everything), metric_of_layer, cancel=cancel
    )
    sign = 1.0 if metric_of_layer.larger_is_better else -1.0
    ordered = {name: sign * value for name, value in ranking.items()}
    by_rank = sorted(ordered, key=lambda name: ordered[name])
    emit(on_event, RankingKnown(tuple((name, ranking[name]) for name in by_rank)))

    def result(accepted: QuantConfig, final: Calibration | None, metric: Any) -> SearchResult:
        return SearchResult(
            accepted,
            final,
            tuple(search.trials),
            {n: ranking[n] for n in by_rank},
            search.original,
            first.metric,
            metric,
        )

    if first.satisfied:
        return result(config, calibration, first.metric)
    answer = _run_strategy(search, chosen, calibration, ordered, first)
    del inputs, quantized, calibration
    while answer is not None:
        accepted = config.with_enabled(answer)
        if not any(answer.values()):
            break
        real = search.calibrate(accepted)
        trial = search.evaluate(real, answer, "final")
        if trial.satisfied:
            return result(accepted, real, trial.metric)
        log.info(
            "calibrated for real, the configuration misses the target; leaving one more in float"
        )
        following = next((name for name in by_rank if answer.get(name)), None)
        answer = {**answer, following: False} if following else None
    search.append_all_float(everything)
    return result(config.with_enabled(dict.fromkeys(everything, False)), None, search.original)


def _run_strategy(
    search: _Search,
    strategy: AutoCalibrationStrategyBase,
    calibration: Calibration,
    ranking: Mapping[str, float],
    first: Trial,
) -> dict[str, bool] | None:
    """The loop of chapter 20 section 6.3, all trials on one calibration; None: all float."""
    strategy.initialize(dict(ranking))
    judged = (first.satisfied, first.loss)
    while True:
        proposal = strategy.update_quant_config(judged)
        quantized = {str(k): bool(v) for k, v in proposal["roll_back_config"].items()}
        if not any(quantized.values()):
            return None
        if proposal["stop_flag"]:
            return quantized
        trial = search.evaluate(calibration, quantized, "search")
        judged = (trial.satisfied, trial.loss)


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


def resolve_strategy(strategy: str | AutoCalibrationStrategyBase) -> AutoCalibrationStrategyBase:
    if isinstance(strategy, AutoCalibrationStrategyBase):
        return strategy
    if strategy == "BinarySearch":
        return BinarySearchStrategy()
    raise WrongState(
        f"strategy must be 'BinarySearch' or an AutoCalibrationStrategyBase, it is {strategy!r}",
        where="accuracy_based_auto_calibration()",
    )


def resolve_sensitivity(sensitivity: str | SensitivityBase) -> SensitivityBase:
    if isinstance(sensitivity, SensitivityBase):
        return sensitivity
    if isinstance(sensitivity, str) and sensitivity in BY_NAME:
        return BY_NAME[sensitivity]()
    raise WrongState(
        f"sensitivity must be one of {sorted(BY_NAME)} or a SensitivityBase, it is {sensitivity!r}",
        where="accuracy_based_auto_calibration()",
    )
