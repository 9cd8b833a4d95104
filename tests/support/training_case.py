"""A small network that learns with every kind of chance: shuffling, dropout, augmentation."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from workbench.engine.flows.training import TrainingResult, fit
from workbench.engine.flows.training_settings import TrainingSettings


class Clipped(nn.Module):
    """A layer whose input is held between two trained bounds, named as QAT names them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.quant_module = nn.Module()
        self.quant_module.replaced_module = nn.Linear(inputs, outputs)
        self.quant_module.acts_clip_max = nn.Parameter(torch.tensor(1.5))
        self.quant_module.acts_clip_min = nn.Parameter(torch.tensor(-1.5))

    def forward(self, x: Tensor) -> Tensor:
        q = self.quant_module
        return q.replaced_module(torch.minimum(torch.maximum(x, q.acts_clip_min), q.acts_clip_max))


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Each sample is drawn anew from three sources of randomness whenever it is read."""

    def __init__(self, count: int = 40) -> None:
        generator = torch.Generator().manual_seed(2)
        self.x = torch.randn(count, 6, generator=generator)
        self.y = (self.x.sum(dim=1) > 0).long()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(6) + float(np.random.rand()) + random.random()
        return self.x[index] + 0.1 * noise, self.y[index]


def make_model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            Clipped(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), Clipped(16, 2)
        )


def make_loader(own_generator: bool = False) -> DataLoader[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7) if own_generator else None
    return DataLoader(Noisy(), batch_size=8, shuffle=True, generator=generator)


def accuracy(model: nn.Module) -> float:
    data = Noisy()
    with torch.no_grad():
        return float((model(data.x).argmax(dim=1) == data.y).double().mean())


SETTINGS = TrainingSettings(epochs=3, learning_rate=0.02, checkpoint_every=2, evaluate_every=4)


def run(
    folder: Path | None, *, settings: TrainingSettings = SETTINGS, own_generator: bool = False,
    model: nn.Module | None = None, **options: Any,
) -> tuple[nn.Module, TrainingResult]:  # fmt: skip
    model = model or make_model()
    options.setdefault("metric", accuracy)
    if "recipe" not in options and "teacher" not in options:
        options.setdefault("loss", nn.CrossEntropyLoss())
    loader = options.pop("loader", None) or make_loader(own_generator)
    result = fit(model, loader, settings=settings, folder=folder, **options)
    return model, result


def same(one: nn.Module, other: nn.Module) -> bool:
    """Bit for bit, parameters and buffers."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def after(step: int, action: Callable[[], None], kind: str = "TrainStep") -> Callable[[Any], None]:
    """An ``on_event`` that acts when an event of ``step`` comes."""

    def on_event(event: Any) -> None:
        if type(event).__name__ == kind and event.step == step:
            action()

    return on_event
