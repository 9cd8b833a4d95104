"""The one calibration that all trials of a search share, and the ranking that comes of it.

Source: specification chapter 20 section 6; decision 13.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import nn

from workbench.engine.events import Notice, RankingKnown, SearchPhase, check, emit
from workbench.engine.files.config import QuantConfig
from workbench.engine.files.record import format_record, parse_record
from workbench.engine.flows.balancing import Factors as BalanceFactors
from workbench.engine.flows.balancing import find_balance
from workbench.engine.flows.calibration import Calibration, OnLayerInput
from workbench.engine.flows.layer_data import LayerCall
from workbench.engine.search.dumps import InputDump
from workbench.engine.search.end_to_end import ModelInputs, end_to_end
from workbench.engine.search.identity import digest_of, identity_of
from workbench.engine.search.inputs import LayerInputs
from workbench.engine.search.model_evaluator import ModelEvaluator
from workbench.engine.search.models import Factors, from_calibration, from_record, is_tuned
from workbench.engine.search.sensitivity import CosineSimilaritySensitivity, EndToEndSensitivity
from workbench.engine.search.setup import SearchSetup

log = logging.getLogger("workbench.engine.search")


class Statistics:
    """Calibrates when something needs it, and not at all when the cache has the answer.

    ``base``: what trials depend on besides. ``never_run``: layers that the calibration data never
    reached; they stay float.
    """

    def __init__(self, setup: SearchSetup, base: str) -> None:
        self._setup = setup
        self._key = digest_of(base, setup.config.digest(), setup.options, setup.seed)
        self._ranking_key = digest_of(self._key, identity_of(setup.sensitivity))
        self._calibration: Calibration | None = None
        self._layer_inputs: LayerInputs | None = None
        self._model_inputs: ModelInputs | None = None
        self._factors: Factors | None = None
        self._balanced: BalanceFactors | None = None
        self._ranking: dict[str, float] | None = None
        self.never_run: tuple[str, ...] = ()

    def prepare(self) -> Factors:
        """The factors of the all-quantised configuration: from the cache, or calibrated."""
        if self._factors is None:
            known = self._setup.cache.get("calibration", self._key)
            if known is None or is_tuned(self._setup.config) or self._setup.dump_folder:
                self.calibration()
            else:
                record = parse_record(known["record"], source="search cache")
                self.never_run = tuple(known["never_run"])
                self._factors = from_record(self._setup.captured, self._setup.config, record)
        assert self._factors is not None
        return self._factors

    def calibration(self) -> Calibration:
        """The all-quantised calibration itself, with the layers' inputs kept for the ranking."""
        if self._calibration is None:
            emit(self._setup.on_event, SearchPhase("calibration"))
            config = self._setup.config.with_enabled(dict.fromkeys(self.never_run, False))
            self._calibration = self.calibrate(config, watch=True)
            if self._factors is None:
                self._factors = from_calibration(self._calibration)
                record = format_record(self._factors.record)
                entry = {"record": record, "never_run": list(self.never_run)}
                self._setup.cache.put("calibration", self._key, entry)
        return self._calibration

    def calibrate(self, config: QuantConfig, *, watch: bool = False) -> Calibration:
        """A finished calibration of ``config``; ``watch``: keep (and dump) the layers' inputs."""
        calibration = self._run(config, watch=watch)
        never = tuple(name for name, seen in calibration.missing().items() if seen == 0)
        if never and watch and set(never) != set(config.enabled()):
            notice = f"the calibration never reaches {', '.join(never)}: left in float"
            log.warning(notice)
            emit(self._setup.on_event, Notice(notice))
            self.never_run = never
            calibration = self._run(config.with_enabled(dict.fromkeys(never, False)), watch=watch)
        calibration.finalize()
        return calibration

    def alternative(self, config: QuantConfig) -> tuple[Factors, dict[str, float]]:
        """Factors of another configuration, and the error of each of its layers alone.

        The error is 1 - cosine of the layer's output; from the cache, or calibrated.
        """
        setup = self._setup
        config = config.with_enabled(dict.fromkeys(self.never_run, False))
        key = digest_of(self._key, config.digest())
        known = setup.cache.get("alternative", key)
        if known is not None and not is_tuned(config):
            record = parse_record(known["record"], source="search cache")
            return from_record(setup.captured, config, record), dict(known["errors"])
        inputs = LayerInputs(int(setup.options.get("memory_budget_mb", 256)) * 2**20)
        calibration = self._run(config, watch=False, inputs=inputs)
        factors = from_calibration(calibration)
        names = tuple(factors.record.layers)
        cosines = inputs.sensitivities(
            factors.folded,
            factors.quantized(names),
            names,
            CosineSimilaritySensitivity(),
            cancel=setup.cancel,
        )
        errors = {name: 2.0 * (1.0 - value) for name, value in cosines.items()}
        entry = {"record": format_record(factors.record), "errors": errors}
        setup.cache.put("alternative", key, entry)
        return factors, errors

    def _run(
        self, config: QuantConfig, *, watch: bool, inputs: LayerInputs | None = None
    ) -> Calibration:
        setup = self._setup
        seers: list[OnLayerInput] = [] if inputs is None else [inputs.see]
        if watch:
            budget = int(setup.options.get("memory_budget_mb", 256)) * 2**20
            if isinstance(setup.sensitivity, EndToEndSensitivity):
                self._model_inputs = ModelInputs(budget)
            else:
                self._layer_inputs = LayerInputs(budget)
                seers.append(self._layer_inputs.see)
            if setup.dump_folder is not None:
                seers.append(InputDump(setup.dump_folder, config.batch_num).see)

        def see(name: str, call: LayerCall) -> None:
            for seer in seers:
                seer(name, call)

        calibration = Calibration(
            setup.captured,
            config,
            balance=self._balance(),
            calibration_data=setup.calibration_data,
            seed=setup.seed,
            on_layer_input=see if seers else None,
            on_event=setup.on_event,
            cancel=setup.cancel,
            **setup.options,
        )
        hook = None
        if watch and self._model_inputs is not None:
            hook = self._model_inputs.watch(calibration.model)
        self._feed(calibration.model)
        if hook is not None:
            hook.remove()
        return calibration

    def _balance(self) -> BalanceFactors:
        """DMQ factors, from a pass of the calibration data through the float model; once."""
        if self._balanced is None:
            setup = self._setup
            self._balanced = find_balance(
                setup.captured,
                setup.config,
                self._feed,
                on_event=setup.on_event,
                cancel=setup.cancel,
            )
        return self._balanced

    def _feed(self, model: nn.Module) -> None:
        """The evaluator's calibration data, through ``model``."""
        evaluator = self._setup.evaluator
        if isinstance(evaluator, ModelEvaluator):
            evaluator.calibration(model, self._setup.config.batch_num)
        else:
            evaluator.calibration(model)

    @property
    def ranked(self) -> bool:
        return self._ranking is not None

    def ranking(self, order: tuple[str, ...]) -> Mapping[str, float]:
        """Sensitivity of each layer in the measure's own sense, in the order given."""
        if self._ranking is None:
            setup = self._setup
            emit(setup.on_event, SearchPhase("sensitivity"))
            known = setup.cache.get("ranking", self._ranking_key)
            values = dict(known["values"]) if known else self._measure(order)
            if known is None:
                setup.cache.put("ranking", self._ranking_key, {"values": values})
            for name in self.never_run:
                values[name] = 1.0 if setup.sensitivity.larger_is_better else 0.0
            self._ranking = values
            self._layer_inputs = self._model_inputs = None
            for name, value in values.items():
                log.info("sensitivity of %s: %.9g", name, value)
            by_rank = sorted(values, key=self.sensitive_first)
            emit(setup.on_event, RankingKnown(tuple((n, values[n]) for n in by_rank)))
        return self._ranking

    def sorted_ranking(self, order: tuple[str, ...]) -> dict[str, float]:
        """Values as the sensitivity gives them, most sensitive first; empty when not needed."""
        if not self.ranked:
            return {}
        values = self.ranking(order)
        return {name: values[name] for name in sorted(values, key=self.sensitive_first)}

    def sensitive_first(self, name: str) -> float:
        """Sort key: smaller means more sensitive."""
        value = (self._ranking or {})[name]
        return value if self._setup.sensitivity.larger_is_better else -value

    def _measure(self, order: tuple[str, ...]) -> dict[str, float]:
        setup = self._setup
        factors = self.prepare()
        if self._layer_inputs is None and self._model_inputs is None:
            self._calibration = None
            self.calibration()
        check(setup.cancel)
        if self._model_inputs is not None:
            return end_to_end(setup, factors, self._model_inputs, order)
        assert self._layer_inputs is not None
        if self._layer_inputs.truncated:
            notice = (
                f"sensitivity of {len(self._layer_inputs.truncated)} large layers comes from a "
                "part of the calibration batches (memory_budget_mb)"
            )
            log.info(notice)
            emit(setup.on_event, Notice(notice))
        return self._layer_inputs.sensitivities(
            factors.folded, factors.quantized(order), order, setup.sensitivity, cancel=setup.cancel
        )

    def release(self) -> None:
        """Forget what only trials and the ranking needed."""
        self._calibration = None
        self._layer_inputs = self._model_inputs = None
