"""A network whose loss is a known sum over its layers, so that its front can be enumerated."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from workbench.engine.events import CancelToken
from workbench.engine.export.torch_module import FakeQuantLayer
from workbench.engine.files.config import QuantConfig, default_config
from workbench.engine.graph.capture import Captured, capture
from workbench.engine.search.auto_calibration import search_configuration
from workbench.engine.search.evaluator import AutoCalibrationEvaluatorBase
from workbench.engine.search.judging import Choice
from workbench.engine.search.pareto import ParetoStrategy
from workbench.engine.search.result import SearchResult

WIDTHS = (6, 8, 16, 12, 24, 8, 10)
LAYERS = tuple(map(str, range(len(WIDTHS) - 1)))
MAX_LOSS = 0.05
INT4, INT8, FLOAT = Choice(True, "int4"), Choice(), Choice(False)


def data() -> torch.Tensor:
    return torch.randn(8, WIDTHS[0], generator=torch.Generator().manual_seed(5))


@functools.cache
def case() -> tuple[nn.Module, Captured, QuantConfig]:
    torch.manual_seed(0)
    pairs = itertools.pairwise(WIDTHS)
    net = nn.Sequential(*[nn.Linear(a, b) for a, b in pairs]).eval()
    captured = capture(net, (data(),))
    return net, captured, default_config(captured.layers)


@functools.cache
def damages(seed: int = 1) -> Mapping[str, Mapping[Choice, float]]:
    """What each choice of a layer costs; it has nothing to do with the layer's real errors."""
    generator = np.random.default_rng(seed)
    eight = 10 ** generator.uniform(-4, -1.5, len(LAYERS))
    four = eight * generator.uniform(1.5, 12, len(LAYERS))
    return {
        name: {FLOAT: 0.0, INT8: float(a), INT4: float(b)}
        for name, a, b in zip(LAYERS, eight, four, strict=True)
    }


class Additive(AutoCalibrationEvaluatorBase):
    """1 minus the damages; ``calls`` of evaluate, after ``stop_at`` of which ``token`` is set."""

    identity = "additive"
    max_loss = MAX_LOSS

    def __init__(self, seed: int = 1, token: CancelToken | None = None, stop_at: int = -1) -> None:
        self.seed, self.stop_at = seed, stop_at
        self.token = token
        self.calls = self.calibrations = 0

    def calibration(self, model: nn.Module) -> None:
        self.calibrations += 1
        model(data())

    def evaluate(self, model: nn.Module) -> float:
        self.calls += 1
        if self.calls == self.stop_at and self.token is not None:
            self.token.cancel()
        found = {
            name: INT4 if float(m.codes.abs().max()) <= 8 else INT8
            for name, m in model.named_modules()
            if isinstance(m, FakeQuantLayer)
        }
        return 1.0 - sum(damages(self.seed)[name][choice] for name, choice in found.items())

    def metric_eval(self, original_metric: Any, new_metric: Any) -> tuple[bool, float]:
        loss = original_metric - new_metric
        return loss <= self.max_loss, loss


def search(
    evaluator: Additive, *, objective: str = "size", trials: int = 60, **options: Any
) -> SearchResult:
    strategy = ParetoStrategy(objective, trials, ("int4",))
    return search_configuration(*case(), evaluator, strategy=strategy, **options)


def size(choices: Mapping[str, Choice]) -> float:
    """Bytes: 4 a float or a bias; 1 or a half a weight, and 8 for a layer's scale."""
    total = 0.0
    for name, (inputs, outputs) in zip(LAYERS, itertools.pairwise(WIDTHS), strict=True):
        width = {FLOAT: 4.0, INT8: 1.0, INT4: 0.5}[choices[name]]
        total += inputs * outputs * width + 4 * outputs + (8 if choices[name].quantize else 0)
    return total


def bit_operations(choices: Mapping[str, Choice]) -> float:
    """MACs times bits of the activation times bits of the weight."""
    bits = {FLOAT: 32 * 32, INT8: 8 * 8, INT4: 8 * 4}
    pairs = zip(LAYERS, itertools.pairwise(WIDTHS), strict=True)
    return float(sum(a * b * bits[choices[name]] for name, (a, b) in pairs))


def everything(cost: Any, seed: int = 1) -> list[tuple[float, float]]:
    """Loss and cost of all 729 configurations."""
    points = []
    for combination in itertools.product((FLOAT, INT8, INT4), repeat=len(LAYERS)):
        choices = dict(zip(LAYERS, combination, strict=True))
        loss = sum(damages(seed)[name][choice] for name, choice in choices.items())
        points.append((loss, cost(choices)))
    return points


def beaten_area(points: Any, corner: tuple[float, float], cells: int = 4000) -> float:
    """Share of the rectangle up to ``corner`` that some point beats, column by column."""
    columns = (np.arange(cells) + 0.5) / cells * corner[0]
    losses, costs = np.array(points).T
    heights = [min(costs[losses <= x], default=corner[1]) for x in columns]
    return float(np.mean(np.maximum(0.0, corner[1] - np.array(heights))))


def summary(result: SearchResult) -> str:
    """What must not depend on chance, workers or interruptions."""
    points = [
        [
            sorted((n, c.quantize, c.variant) for n, c in p.choices.items()),
            p.loss,
            p.cost,
            p.on_front,
        ]
        for p in result.pareto
    ]
    tried = [
        sorted((n, c.quantize, c.variant) for n, c in t.choices.items()) for t in result.trials
    ]
    return json.dumps([points, tried, result.config.to_json()])
