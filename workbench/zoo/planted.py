"""Networks with planted outlier layers: the answer of a search over them is known.

Each is one of the trained examples with channels of a few layers rescaled by powers of two, in
one place up, in the next down (see `workbench.zoo.unbalance`): the same function, bit for bit,
but those layers no longer fit into INT8. ``planted.json`` holds the smallest roll-backs that
pass, found by brute force (``tests/support/planted_minimum.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from workbench.engine.search.evaluator import AutoCalibrationEvaluatorBase
from workbench.zoo import ZooModel, load

ANSWERS = Path(__file__).with_name("planted.json")
PSNR_CEILING = 80.0
"""dB; keeps the score of a sample that is met exactly finite."""


@dataclass(frozen=True)
class Plant:
    """Channel c of ``producer`` is multiplied by 2 to the ``exponents[c % len(exponents)]``.

    ``producer``: a batch or layer norm or a Linear; ``consumers``: the layers whose input it
    becomes, with nothing but ReLU, reshapes or a mean over positions between. The consumers are
    the layers that become hard.
    """

    producer: str
    consumers: tuple[str, ...]
    exponents: tuple[int, ...]


@dataclass(frozen=True)
class Planting:
    """One planted network: what it is made from, where, and how much it may lose.

    ``max_loss``: of the mean of the samples' scores (share of hits, or dB); ``samples``: how many
    of the evaluation pictures are used.
    """

    base: str
    plants: tuple[Plant, ...]
    max_loss: float
    samples: int = 4200


def _separable(block: int, *exponents: int) -> Plant:
    path = f"blocks.{block}"
    return Plant(f"{path}.depthwise.bn", (f"{path}.pointwise.conv",), exponents)


def _residual(path: str, *exponents: int) -> Plant:
    return Plant(f"{path}.bn1", (f"{path}.conv2",), exponents)


def _mlp(block: int, *exponents: int) -> Plant:
    path = f"blocks.{block}"
    return Plant(f"{path}.norm2", (f"{path}.fc1",), exponents)


def _mixed(block: int, *exponents: int) -> Plant:
    path = f"blocks.{block}.attention"
    return Plant(f"{path}.value", (f"{path}.output",), exponents)


PLANTED: dict[str, Planting] = {
    "resnet-three": Planting(
        "digits-resnet",
        (
            _residual("layer1.1", 0, 10),
            _residual("layer2.0", 0, 8),
            _residual("layer3.1", 0, 0, 0, 8),
        ),
        0.005,
    ),
    "resnet-masked": Planting(
        "digits-resnet",
        (
            _residual("layer1.0", 0, 0, 9),
            _residual("layer1.2", 0, 6),
            _residual("layer2.2", 0, 7),
            _residual("layer3.0", 0, 5),
            _residual("layer3.2", 0, 9),
        ),
        0.01,
    ),
    "mobilenet-hard": Planting(
        "digits-mobilenet",
        (
            _separable(2, 0, 6),
            _separable(5, 0, 7),
            _separable(8, 0, 7),
            _separable(11, 0, 6),
        ),
        0.005,
    ),
    "mobilenet-late": Planting(
        "digits-mobilenet",
        (
            _separable(1, 0, 0, 0, 5),
            _separable(6, 0, 5),
            _separable(9, 0, 8),
            _separable(10, 0, 0, 7),
            _separable(12, 0, 9),
        ),
        0.003,
    ),
    "mobilenet-spread": Planting(
        "digits-mobilenet",
        (
            _separable(0, 0, 4),
            _separable(2, 0, 5),
            _separable(3, 0, 5),
            _separable(5, 0, 0, 6),
            _separable(6, 0, 6),
            _separable(7, 0, 5),
            _separable(8, 0, 0, 0, 6),
            _separable(10, 0, 5),
        ),
        0.004,
    ),
    "vit": Planting(
        "digits-vit",
        (
            _mlp(0, 0, 0, 0, 8),
            _mixed(1, 0, 8),
            _mlp(2, 0, 9),
            Plant("norm", ("head",), (0, 0, 8)),
        ),
        0.007,
    ),
    "autoencoder": Planting(
        "digits-autoencoder",
        (
            Plant("encoder.2.bn", ("encoder.4.conv",), (0, 5)),
            Plant("decoder.0.bn", ("decoder.2.conv",), (0, 6)),
            Plant("decoder.4.bn", ("decoder.6.conv",), (0, 7)),
        ),
        0.5,
    ),
}


@torch.no_grad()
def plant(model: nn.Module, plants: Sequence[Plant]) -> None:
    """Rescale in place. Raises `TypeError` for a producer or consumer of another kind."""
    for item in plants:
        producer: Any = model.get_submodule(item.producer)
        if not isinstance(producer, nn.BatchNorm2d | nn.LayerNorm | nn.Linear):
            raise TypeError(f"{item.producer} is {type(producer).__name__}: no producer")
        count = len(producer.weight)
        exponents = [item.exponents[c % len(item.exponents)] for c in range(count)]
        factor = torch.tensor([2.0**e for e in exponents])
        producer.weight.mul_(factor.reshape(-1, *[1] * (producer.weight.dim() - 1)))
        producer.bias.mul_(factor)
        for name in item.consumers:
            consumer: Any = model.get_submodule(name)
            if not isinstance(consumer, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
                raise TypeError(f"{name} is {type(consumer).__name__}: no consumer")
            axis = 0 if isinstance(consumer, nn.ConvTranspose2d) else 1
            shape = [1] * consumer.weight.dim()
            shape[axis] = -1
            consumer.weight.div_(factor.reshape(shape))


class SampleEvaluator(AutoCalibrationEvaluatorBase):
    """Judges by the mean of one score per sample: a hit or a miss, or the sample's PSNR in dB.

    Calibrates on the first ``batch_size`` calibration pictures.
    """

    def __init__(
        self, example: ZooModel, max_loss: float, samples: int | None = None, batch_size: int = 128
    ) -> None:
        self.pictures = example.data.evaluation[:samples]
        self.targets = example.data.targets[:samples]
        self.first = example.data.calibration[:batch_size]
        self.metric: Literal["top1", "psnr"] = example.metric
        self.max_loss = max_loss
        self.sample_count = len(self.pictures)
        self.batch_size = batch_size
        self.evaluated = 0

    def calibration(self, model: nn.Module) -> None:
        with torch.inference_mode():
            model(self.first)

    def evaluate(self, model: nn.Module) -> float:
        scores = [score for _, score in self.evaluate_samples(model)]
        return sum(scores) / len(scores)

    def evaluate_samples(
        self, model: nn.Module, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[int, float]]:
        """Pairs of sample and score, in the order asked."""
        wanted = list(range(self.sample_count)) if indices is None else [int(i) for i in indices]
        self.evaluated += len(wanted)
        for start in range(0, len(wanted), self.batch_size):
            part = torch.tensor(wanted[start : start + self.batch_size])
            with torch.inference_mode():
                output = model(self.pictures[part])
            yield from zip(part.tolist(), self._scores(output, self.targets[part]), strict=True)

    def _scores(self, output: Tensor, targets: Tensor) -> list[float]:
        if self.metric == "top1":
            return (output.argmax(1) == targets).double().tolist()
        error = (output - targets).double().square().flatten(1).mean(1)
        return (-10.0 * error.log10()).clamp(max=PSNR_CEILING).tolist()

    def metric_eval(self, original_metric: float, new_metric: float) -> tuple[bool, float]:
        loss = original_metric - new_metric
        return loss <= self.max_loss + 1e-12, loss


@dataclass(frozen=True)
class PlantedModel:
    """``example`` holds the planted model; ``inputs``: arguments to capture it with."""

    name: str
    planting: Planting
    example: ZooModel
    evaluator: SampleEvaluator
    inputs: tuple[Tensor, ...]


def load_planted(name: str, samples: int | None = None) -> PlantedModel:
    """A fresh copy of the planted model ``name``, judged on ``samples`` pictures (None: its own).

    Raises `KeyError` for an unknown name; `PLANTED` lists them.
    """
    planting = PLANTED[name]
    example = load(planting.base)
    plant(example.model, planting.plants)
    evaluator = SampleEvaluator(example, planting.max_loss, samples or planting.samples)
    return PlantedModel(name, planting, example, evaluator, (example.data.calibration[:2],))


@cache
def answers() -> dict[str, dict[str, Any]]:
    """By name: ``minimum`` (size), ``smallest`` (the smallest passing roll-backs), ``worst``."""
    stored: dict[str, dict[str, Any]] = json.loads(ANSWERS.read_text(encoding="utf-8"))
    return stored
