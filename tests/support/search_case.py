"""A small network, and evaluators that say exactly what quantising each of its layers costs.

Their answers depend only on which layers are fake-quantised, so every search has a known answer.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from workbench.engine.export.torch_module import FakeQuantLayer
from workbench.engine.files.config import QuantConfig, default_config
from workbench.engine.graph.capture import Captured, capture
from workbench.engine.search.auto_calibration import search_configuration
from workbench.engine.search.evaluator import AutoCalibrationEvaluatorBase
from workbench.engine.search.result import SearchResult

LAYERS = ("0", "2", "4", "6", "8", "10")


def data() -> torch.Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(3))


@functools.cache
def case() -> tuple[nn.Module, Captured, QuantConfig]:
    """Six linear layers; the model, its capture, and a configuration that quantises all."""
    torch.manual_seed(1)
    parts: list[nn.Module] = []
    for _ in LAYERS:
        parts += [nn.Linear(6, 6), nn.ReLU()]
    net = nn.Sequential(*parts[:-1]).eval()
    captured = capture(net, (data(),))
    return net, captured, default_config(captured.layers)


def search(evaluator: AutoCalibrationEvaluatorBase, **options: Any) -> SearchResult:
    return search_configuration(*case(), evaluator, **options)


class Whole(AutoCalibrationEvaluatorBase):
    """The metric is 1 minus the damage of the quantised layers; ``log`` gets a line a call.

    ``die_at``: the process kills itself in that call of this life.
    """

    identity = "whole"

    def __init__(
        self,
        damage: Mapping[str, float],
        max_loss: float,
        log: str | None = None,
        die_at: int | None = None,
    ) -> None:
        self.damage, self.max_loss = dict(damage), max_loss
        self.log, self.die_at = log, die_at
        self.calls = 0

    def calibration(self, model: nn.Module) -> None:
        self.note("calibration")
        model(data())

    def evaluate(self, model: nn.Module) -> float:
        quantized = names(model)
        if self.calls == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.note("evaluate", sorted(quantized))
        return 1.0 - sum(self.damage.get(name, 0.0) for name in quantized)

    def metric_eval(self, original_metric: Any, new_metric: Any) -> tuple[bool, float]:
        loss = original_metric - new_metric
        return loss <= self.max_loss + 1e-12, loss

    def note(self, *what: Any) -> None:
        self.calls += 1
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(json.dumps(what) + "\n")


class Sampled(Whole):
    """The same by samples: each layer spoils its own share of ``sample_count`` samples."""

    identity = "sampled"

    def __init__(self, *args: Any, sample_count: int = 2000, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sample_count = sample_count

    def scores(self, quantized: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
        order = np.random.default_rng(7).permutation(self.sample_count)
        scores, start = np.ones(self.sample_count), 0
        for name in LAYERS:
            count = round(self.damage.get(name, 0.0) * self.sample_count)
            if name in quantized:
                scores[order[start : start + count]] = 0.0
            start += count
        return scores

    def evaluate_samples(
        self, model: nn.Module, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[int, float]]:
        quantized = sorted(names(model))
        wanted = list(range(self.sample_count)) if indices is None else list(indices)
        if self.calls == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.note("samples", quantized, wanted)
        scores = self.scores(quantized)
        yield from ((i, float(scores[i])) for i in wanted)


def names(model: nn.Module) -> list[str]:
    """The layers that are fake-quantised in a trial's module."""
    return [name for name, m in model.named_modules() if isinstance(m, FakeQuantLayer)]


def read_log(path: Path) -> list[list[Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":  # one life of a search that may be killed
    from workbench.engine.search.cache import TrialCache

    kind, folder, die_at, strategy = sys.argv[1:5]
    evaluator = {"Whole": Whole, "Sampled": Sampled}[kind](
        {"2": 0.02, "8": 0.03},
        0.01,
        f"{folder}/calls.jsonl",
        int(die_at) if die_at != "never" else None,
    )
    found = search(evaluator, strategy=strategy, cache=TrialCache(folder))
    print(json.dumps(found.trials[-1].float_layers))
