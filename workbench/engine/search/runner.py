"""Measures trials: from the cache if they are known, else on the workers, else here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from workbench.engine.events import check
from workbench.engine.search.identity import digest_of
from workbench.engine.search.judgement import storable
from workbench.engine.search.measuring import Outcome, SamplePlan, by_samples, evaluate_samples
from workbench.engine.search.models import Factors, fake_quant_onnx
from workbench.engine.search.onnx_backend import OnnxModule, require_agreement
from workbench.engine.search.setup import SearchSetup
from workbench.engine.search.workers import Payload, Task, run_task

Key = frozenset[str]
"""The layers of a trial that are left in float."""


@dataclass(frozen=True)
class Measured:
    outcome: Outcome
    satisfied: bool
    loss: float
    cached: bool


class Runner:
    """Trials with the same factors. ``base``: what everything depends on, for the cache's keys.

    ``equivalents``: full evaluations spent. ``judged`` is the user's judgement of a metric.
    """

    def __init__(
        self,
        setup: SearchSetup,
        base: str,
        factors: Factors,
        plan: SamplePlan | None,
        judged: Callable[[Any], tuple[bool, float]],
    ) -> None:
        self._setup = setup
        self._judged = judged
        self._base = digest_of(base, factors.digest())
        spec = setup.captured.program.call_spec.out_spec
        self.payload = Payload(factors, setup.evaluator, plan, spec)
        self.equivalents = 0.0
        self._compared = False

    def use(self, plan: SamplePlan) -> None:
        self.payload = replace(self.payload, plan=plan)

    def run(
        self,
        keys: Sequence[Key],
        *,
        early: bool,
        on_start: Callable[[Key], None],
        on_done: Callable[[Key, Measured], None],
    ) -> None:
        """Measure all of ``keys``; ``on_done`` is called in their order."""
        remote: dict[Key, Outcome] = {}
        if self._setup.workers:
            for key in keys:
                on_start(key)
            remote = self._remote(keys, early)
        for key in keys:
            check(self._setup.cancel)
            if not self._setup.workers:
                on_start(key)
            known = self.known(key, early=early) if key not in remote else None
            on_done(key, known or self._measured(key, remote.get(key) or self._here(key, early)))

    def known(self, key: Key, *, early: bool) -> Measured | None:
        """What the cache has of a trial; None when something would have to be evaluated."""
        entry = self._setup.cache.get("trial", self.cache_key(key))
        if self.payload.plan is not None:
            scores = self._setup.cache.scores(self.cache_key(key))
            outcome = by_samples(self.payload.plan, scores, None, early=early, key=_number(key))
            if outcome is None:
                return None
            outcome = replace(outcome, seconds=float(entry["seconds"]) if entry else 0.0)
            return Measured(outcome, *self._verdict(outcome), True)
        if entry is None:
            return None
        outcome = Outcome(entry.get("metric"), float(entry["seconds"]))
        if "metric" in entry:
            return Measured(outcome, *self._verdict(outcome), True)
        return Measured(outcome, bool(entry["satisfied"]), float(entry["loss"]), True)

    def scores(self, key: Key, indices: Sequence[int]) -> None:
        """See to it that the cache has the scores of these samples."""
        plan = self.payload.plan
        assert plan is not None
        cache, name = self._setup.cache, self.cache_key(key)
        missing = [i for i in dict.fromkeys(indices) if i not in cache.scores(name)]
        if missing:
            check(self._setup.cancel)
            module = self._task(key, early=False).module(self.payload)
            fresh = evaluate_samples(self._setup.evaluator, module, missing)
            cache.add_scores(name, fresh)
            self.equivalents += len(fresh) / len(plan.original)

    def cache_key(self, key: Key) -> str:
        return digest_of(self._base, sorted(key))

    def _measured(self, key: Key, outcome: Outcome) -> Measured:
        plan = self.payload.plan
        self.equivalents += len(outcome.fresh) / len(plan.original) if plan else 1.0
        satisfied, loss = self._verdict(outcome)
        entry = {"satisfied": satisfied, "loss": loss, "seconds": outcome.seconds}
        if plan is None:
            entry |= storable(outcome.metric)
        self._setup.cache.put("trial", self.cache_key(key), entry)
        return Measured(outcome, satisfied, loss, False)

    def _verdict(self, outcome: Outcome) -> tuple[bool, float]:
        satisfied, loss = self._judged(outcome.metric)
        return (satisfied if outcome.verdict is None else outcome.verdict), loss

    def _here(self, key: Key, early: bool) -> Outcome:
        cache, name = self._setup.cache, self.cache_key(key)
        return run_task(
            self.payload,
            self._task(key, early),
            on_scores=lambda scores: cache.add_scores(name, scores),
            cancel=self._setup.cancel,
        )

    def _remote(self, keys: Sequence[Key], early: bool) -> dict[Key, Outcome]:
        """Outcomes of those that the cache does not know, evaluated side by side."""
        unknown = [key for key in keys if self.known(key, early=early) is None]
        if not unknown:
            return {}
        assert self._setup.workers is not None
        tasks = [self._task(key, early) for key in unknown]
        outcomes = self._setup.workers.run(self.payload, tasks, self._setup.cancel)
        for key, outcome in zip(unknown, outcomes, strict=True):
            if outcome.fresh:
                self._setup.cache.add_scores(self.cache_key(key), outcome.fresh)
        return dict(zip(unknown, outcomes, strict=True))

    def _task(self, key: Key, early: bool) -> Task:
        setup, factors = self._setup, self.payload.factors
        names = tuple(name for name in factors.record.layers if name not in key)
        data = None
        if setup.backend == "onnx":
            data = fake_quant_onnx(setup.captured, setup.config, factors, names)
            if not self._compared:
                batch = (setup.captured.args, setup.captured.kwargs)
                module = OnnxModule(data, self.payload.output_spec)
                require_agreement(factors.quantized(names), module, batch)
                self._compared = True
        scores = dict(setup.cache.scores(self.cache_key(key))) if self.payload.plan else {}
        return Task(names, scores, early, _number(key), data)


def _number(key: Key) -> int:
    """A number of a configuration, the same in every process."""
    text = "\n".join(sorted(key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
