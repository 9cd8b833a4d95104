"""The ways to quantise one layer side by side, each with what it costs and what it spoils.

Source: specification chapter 70 section 3 (Inspect).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from workbench.engine.analysis.layer_alone import MINMAX, LayerAlone, QuantizedLayer, settings_of
from workbench.engine.errors import Cancelled, WorkbenchError, WrongValue
from workbench.engine.events import CancelToken, Event, OnEvent, Progress, emit
from workbench.engine.files.config import QuantConfig
from workbench.engine.files.layer_rules import (
    int4_obstacle,
    int16_obstacle,
    rules_for,
    weight_bits_obstacle,
)
from workbench.engine.flows.layer_data import Batch
from workbench.engine.graph.capture import Captured

ADA_ITERATIONS = 1000
DEFAULT_STRENGTH = 0.5
NAMES = {
    "ifmr": "IFMR",
    "hfmg": "HFMG",
    MINMAX: "min–max",
    "arq_quantize": "ARQ",
    "ada_quantize": "ADA",
}
ACTIVATION = ("ifmr", "hfmg", MINMAX)
WEIGHT = ("arq_quantize", "ada_quantize")
ACT_BITS = (8, 16)
WTS_BITS = (8, 7, 6, 4)
_SHARE_OF_ADA = 20


@dataclass(frozen=True)
class Alternative:
    """One way to quantise a layer; everything it does not name is as configured.

    ``kind``: activation, weight, or balance (an activation with DMQ). ``settings``: what to set to
    have it, by column (``act_algo``, ``act_bits``, ``dmq``, ``wts_algo``, ``wts_bits``,
    ``channel_wise``); empty for a baseline that no configuration can ask for. ``scale`` to
    ``scale_max``: of a weight the smallest and the largest, of an activation the same. ``cosine``
    and ``sqnr_db`` (decibel) of the layer's output on its float input; NaN when ``trouble`` says
    why it cannot be done. ``seconds``: to find the factors, without the measuring.
    """

    kind: str
    algorithm: str
    label: str
    settings: Mapping[str, Any]
    scale: float
    scale_max: float
    offset: int
    cosine: float
    error: float
    sqnr_db: float
    seconds: float
    in_use: bool
    trouble: str = ""


@dataclass(frozen=True)
class _Plan:
    kind: str
    algorithm: str
    label: str
    settings: Mapping[str, Any]


def compare_algorithms(
    captured: Captured,
    config: QuantConfig,
    name: str,
    batches: Sequence[Batch],
    *,
    algorithms: Collection[str] | None = None,
    ada_iterations: int = ADA_ITERATIONS,
    byte_budget: int = 256 * 2**20,
    seed: int = 0,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> tuple[Alternative, ...]:
    """Every way that ``config`` could quantise layer ``name``, each measured on ``batches``.

    The layer stands alone: its input is that of the float network (kept within ``byte_budget``),
    its scales are found on what it reads when the weights before it are quantised. ``algorithms``:
    of ifmr, hfmg, minmax, arq_quantize and ada_quantize those to try; None: all but
    ``ada_quantize``, which takes ``ada_iterations`` steps of learning.

    Errors: ``WrongValue`` for an unknown algorithm or a layer that is not in ``config``.
    """
    alone = LayerAlone(
        captured, config, name, batches,
        byte_budget=byte_budget, seed=seed, on_event=on_event, cancel=cancel,
    )  # fmt: skip
    return alternatives(
        alone, algorithms=algorithms, ada_iterations=ada_iterations, on_event=on_event
    )


def alternatives(
    alone: LayerAlone,
    *,
    algorithms: Collection[str] | None = None,
    ada_iterations: int = ADA_ITERATIONS,
    on_event: OnEvent | None = None,
) -> tuple[Alternative, ...]:
    """``compare_algorithms`` of a layer whose inputs are known."""
    wanted = set(ACTIVATION + WEIGHT) - {"ada_quantize"} if algorithms is None else set(algorithms)
    unknown = sorted(wanted - set(ACTIVATION + WEIGHT))
    if unknown:
        raise WrongValue(
            f"{', '.join(unknown)} is no algorithm; allowed: {', '.join(ACTIVATION + WEIGHT)}",
            where="algorithms",
        )
    if ada_iterations < 1:
        raise WrongValue(f"ada_iterations is {ada_iterations}; allowed: 1 or more", where="compare")
    plans = [*_activation_plans(alone, wanted), *_weight_plans(alone, wanted)]
    costs = [_SHARE_OF_ADA if p.algorithm == "ada_quantize" else 1 for p in plans]
    trial = _Trial(alone, ada_iterations)
    found = []
    for index, plan in enumerate(plans):
        report = _within(on_event, sum(costs[:index]), costs[index], sum(costs))
        found.append(trial.run(plan, report))
        emit(on_event, Progress("compare", sum(costs[: index + 1]), sum(costs)))
    return tuple(found)


def _activation_plans(alone: LayerAlone, wanted: Collection[str]) -> Iterator[_Plan]:
    entry = alone.entry
    strength = entry.dmq_balancer_param or DEFAULT_STRENGTH
    balanced = (0.0, strength) if rules_for(alone.info).dmq else (0.0,)
    for dmq in balanced:
        for algorithm in ACTIVATION:
            if algorithm not in wanted:
                continue
            label = NAMES[algorithm] + (f" + DMQ {dmq:g}" if dmq else "")
            settings = {} if algorithm == MINMAX else {"act_algo": algorithm, "dmq": dmq}
            yield _Plan("balance" if dmq else "activation", algorithm, label, settings)
    now = entry.activation.act_algo
    if now in wanted:
        for bits in ACT_BITS:
            obstacle = {4: int4_obstacle, 16: int16_obstacle}.get(bits)
            if bits != entry.activation.num_bits and not (obstacle and obstacle(alone.info)):
                label = f"{NAMES[now]}, {bits} bits"
                yield _Plan("activation", now, label, {"act_bits": bits})


def _weight_plans(alone: LayerAlone, wanted: Collection[str]) -> Iterator[_Plan]:
    if not alone.info.has_weight:
        return
    rules, now = rules_for(alone.info), alone.weight_params
    if "arq_quantize" in wanted:
        ways = [True] if rules.channel_wise else []
        for channel_wise in (*ways, False):
            where = "per channel" if channel_wise else "per tensor"
            settings = {"wts_algo": "arq_quantize", "channel_wise": channel_wise}
            yield _Plan("weight", "arq_quantize", f"ARQ {where}", settings)
        for bits in WTS_BITS:
            if bits != now.num_bits and not weight_bits_obstacle(alone.info, bits):
                settings = {"wts_algo": "arq_quantize", "wts_bits": bits}
                yield _Plan("weight", "arq_quantize", f"ARQ, {bits} bits", settings)
    if "ada_quantize" in wanted and rules.ada:
        where = "per channel" if now.channel_wise else "per tensor"
        yield _Plan("weight", "ada_quantize", f"ADA {where}", {"wts_algo": "ada_quantize"})


class _Trial:
    """Quantises and measures; keeps the weight and the activation as configured for reuse."""

    def __init__(self, alone: LayerAlone, ada_iterations: int) -> None:
        self.alone = alone
        self.ada_iterations = ada_iterations
        self._base: QuantizedLayer | None = None

    def run(self, plan: _Plan, on_event: OnEvent | None) -> Alternative:
        now = settings_of(self.alone.entry)
        in_use = bool(plan.settings) and all(now.get(c) == v for c, v in plan.settings.items())
        start = time.perf_counter()
        try:
            if plan.kind == "weight":
                quantized, seconds = self._weight(plan, on_event)
                scales = (*quantized.record.scale_w, *quantized.record.scale_r)
                offset = 0
            else:
                quantized, seconds = self._activation(plan)
                assert quantized.record.scale_d is not None
                scales, offset = (quantized.record.scale_d,), quantized.record.offset_d or 0
            sums = self.alone.errors(quantized)
        except Cancelled:
            raise
        except WorkbenchError as problem:
            return Alternative(
                plan.kind, plan.algorithm, plan.label, plan.settings, math.nan, math.nan, 0,
                math.nan, math.nan, math.nan, time.perf_counter() - start, in_use, str(problem),
            )  # fmt: skip
        return Alternative(
            plan.kind, plan.algorithm, plan.label, plan.settings, min(scales), max(scales), offset,
            sums.cosine, sums.cosine_error, sums.sqnr_db, seconds, in_use,
        )  # fmt: skip

    def _activation(self, plan: _Plan) -> tuple[QuantizedLayer, float]:
        alone = self.alone
        bits = int(plan.settings.get("act_bits", alone.entry.activation.num_bits))
        params = replace(alone.entry.activation, act_algo=plan.algorithm, num_bits=bits)
        strength = alone.entry.dmq_balancer_param
        if plan.kind == "balance":
            strength = strength or DEFAULT_STRENGTH
        elif "act_bits" not in plan.settings:
            strength = None
        start = time.perf_counter()
        factors = alone.factors(strength if rules_for(alone.info).dmq else None)
        scale = alone.activation(params, factors)
        seconds = time.perf_counter() - start
        weight = alone.weight(alone.weight_params, factors)
        return alone.with_activation(weight, scale, params), seconds

    def _weight(self, plan: _Plan, on_event: OnEvent | None) -> tuple[QuantizedLayer, float]:
        alone = self.alone
        params = replace(
            alone.weight_params,
            wts_algo=plan.algorithm,
            num_bits=int(plan.settings.get("wts_bits", alone.weight_params.num_bits)),
            channel_wise=bool(plan.settings.get("channel_wise", alone.weight_params.channel_wise)),
            num_iteration=self.ada_iterations,
        )
        if self._base is None:
            self._base = alone.in_use()
        factors = self._base.record.tensor_balance_factor
        start = time.perf_counter()
        if plan.algorithm == "ada_quantize":
            weight = alone.tuned(params, factors, on_event=on_event)
        else:
            weight = alone.weight(params, factors)
        seconds = time.perf_counter() - start
        record = replace(
            weight.record,
            scale_d=self._base.record.scale_d,
            offset_d=self._base.record.offset_d,
            act_type=self._base.record.act_type,
            scale_h=self._base.record.scale_h,
            offset_h=self._base.record.offset_h,
        )
        return QuantizedLayer(record, weight.weight), seconds


def _within(
    on_event: OnEvent | None, before: int, cost: int, total: int
) -> Callable[[Event], None]:
    """Passes events on, the progress of a part as that of the whole."""

    def report(event: Event) -> None:
        if isinstance(event, Progress):
            share = event.done / event.total if event.total else 0.0
            event = Progress("compare", before + int(cost * share), total)
        emit(on_event, event)

    return report
