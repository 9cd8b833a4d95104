"""Trials in other processes or on other machines: what travels, and how it is run there.

An executor's own pickles carry everything; nothing here reads a pickle from a file or a user.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from workbench.engine.errors import WrongState, WrongType
from workbench.engine.events import CancelToken, check
from workbench.engine.search.evaluator import AutoCalibrationEvaluatorBase
from workbench.engine.search.measuring import (
    Outcome,
    SamplePlan,
    by_samples,
    evaluate_samples,
    evaluate_whole,
)
from workbench.engine.search.models import Factors
from workbench.engine.search.onnx_backend import OnnxModule

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Payload:
    """What all trials of a search share. ``threads``: results depend on torch's thread count.

    ``output_spec`` is the pytree specification of the model's outputs, for ONNX files.
    """

    factors: Factors
    evaluator: AutoCalibrationEvaluatorBase
    plan: SamplePlan | None
    output_spec: Any = None
    threads: int = field(default_factory=torch.get_num_threads)


@dataclass(frozen=True)
class Task:
    """One trial: quantise ``names``. ``onnx``: the fake-quant file to run instead of torch.

    ``known``: scores that need not be evaluated; ``early``: an early verdict is welcome;
    ``key`` names the configuration.
    """

    names: tuple[str, ...]
    known: Mapping[int, float] = field(default_factory=dict)
    early: bool = False
    key: int = 0
    onnx: bytes | None = None

    def module(self, payload: Payload) -> nn.Module:
        if self.onnx is not None:
            return OnnxModule(self.onnx, payload.output_spec)
        return payload.factors.quantized(self.names)


def run_task(
    payload: Payload,
    task: Task,
    *,
    on_scores: Callable[[Mapping[int, float]], None] | None = None,
    cancel: CancelToken | None = None,
) -> Outcome:
    """Evaluate one trial here; ``on_scores`` is told of each chunk of samples."""
    model, evaluator = task.module(payload), payload.evaluator
    if payload.plan is None:
        return evaluate_whole(evaluator, model)

    def fetch(indices: Sequence[int]) -> Mapping[int, float]:
        check(cancel)
        scores = evaluate_samples(evaluator, model, indices)
        if on_scores is not None:
            on_scores(scores)
        return scores

    outcome = by_samples(payload.plan, task.known, fetch, early=task.early, key=task.key)
    assert outcome is not None
    return outcome


_held = threading.local()
"""The payload that this worker's thread unpacked last, under ``digest`` and ``payload``."""


def _run_there(digest: str, packed: bytes | None, task: Task) -> Outcome | None:
    """Runs in a worker; None: the worker does not have the payload, send it along."""
    if getattr(_held, "digest", None) != digest:
        if packed is None:
            return None
        payload = pickle.loads(packed)
        _held.digest, _held.payload = digest, payload
        if torch.get_num_threads() != payload.threads:
            torch.set_num_threads(payload.threads)
    return run_task(_held.payload, task)


class Workers:
    """A ``concurrent.futures`` executor, or a Dask client, as a place to run trials.

    Errors: ``TypeError`` for anything else.
    """

    def __init__(self, executor: Any) -> None:
        if not isinstance(executor, Executor) and hasattr(executor, "get_executor"):
            executor = executor.get_executor(pure=False)
        if not isinstance(executor, Executor):
            raise WrongType(
                f"executor is a {type(executor).__name__}; allowed: a concurrent.futures.Executor "
                "or a Dask Client",
                where="executor",
            )
        self._executor = executor
        self._packed: tuple[Payload, str, bytes] | None = None

    @property
    def count(self) -> int:
        """How many trials run side by side."""
        client = getattr(self._executor, "_client", None)
        if client is not None:
            return max(1, sum(int(n) for n in client.nthreads().values()))
        return int(getattr(self._executor, "_max_workers", None) or os.cpu_count() or 1)

    def run(
        self, payload: Payload, tasks: Sequence[Task], cancel: CancelToken | None = None
    ) -> list[Outcome]:
        """Outcomes in the order of ``tasks``; a cancel gives up those that have not begun."""
        digest, packed = self._pack(payload)
        futures: list[Future[Outcome | None]] = [
            self._executor.submit(_run_there, digest, None, task) for task in tasks
        ]
        try:
            results = self._wait(futures, cancel)
            again = [i for i, result in enumerate(results) if result is None]
            futures = [self._executor.submit(_run_there, digest, packed, tasks[i]) for i in again]
            for i, result in zip(again, self._wait(futures, cancel), strict=True):
                results[i] = result
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return [result for result in results if result is not None]

    @staticmethod
    def _wait(
        futures: Sequence[Future[Outcome | None]], cancel: CancelToken | None
    ) -> list[Outcome | None]:
        pending = set(futures)
        while pending:
            check(cancel)
            _, pending = wait(pending, timeout=_POLL_SECONDS)
        return [future.result() for future in futures]

    def _pack(self, payload: Payload) -> tuple[str, bytes]:
        if self._packed is None or self._packed[0] is not payload:
            try:
                packed = _dumps(payload)
            except Exception as error:
                raise WrongState(
                    "the model or the evaluator cannot be sent to a worker: "
                    f"{type(error).__name__}: {error}",
                    where="executor",
                    hint="Define their classes in a module that the workers can import, without "
                    "attributes that cannot be pickled; or leave executor out.",
                ) from error
            digest = hashlib.blake2b(packed, digest_size=16).hexdigest()
            self._packed = (payload, digest, packed)
        return self._packed[1:]


def _dumps(payload: Payload) -> bytes:
    """Pickled by value where the class is not importable, if Dask's cloudpickle is there."""
    by_value = importlib.util.find_spec("cloudpickle") is not None
    pickler: Any = importlib.import_module("cloudpickle") if by_value else pickle
    data: bytes = pickler.dumps(payload)
    return data
