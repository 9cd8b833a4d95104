"""Small networks in training for quantisation, and the steps of their life that tests share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.engine import create_quant_retrain_config, create_quant_retrain_model


class SmallNet(nn.Module):
    """Conv + BN + ReLU, two convolutions of one tensor, a residual add, a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.side = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.body(input=x) + self.side(x))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


@dataclass
class Files:
    """Where the files of one flow lie."""

    folder: Path

    @property
    def config(self) -> str:
        return str(self.folder / "qat.json")

    @property
    def record(self) -> str:
        return str(self.folder / "qat.record.txt")

    @property
    def checkpoint(self) -> str:
        return str(self.folder / "state.pth")

    @property
    def save_path(self) -> str:
        return str(self.folder / "out" / "net")

    def onnx(self, kind: str) -> str:
        return f"{self.save_path}_{kind}_model.onnx"


def small_net(seed: int = 0) -> SmallNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallNet()


def batch(seed: int, size: int = 4) -> Tensor:
    return torch.randn(size, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def make_config(files: Files, model: nn.Module, inputs: Any, **changes: Any) -> None:
    """The default config with global keys changed; ``layers``: updates of all layers' parts."""
    create_quant_retrain_config(files.config, model, inputs)
    layers: dict[str, Any] = changes.pop("layers", {})
    data = json.loads(Path(files.config).read_text()) | changes
    for name, parts in layers.items():
        for part, update in parts.items():
            data[name].setdefault(part, {}).update(update)
    Path(files.config).write_text(json.dumps(data))


def make_model(files: Files, model: nn.Module, inputs: Any, **changes: Any) -> nn.Module:
    make_config(files, model, inputs, **changes)
    return create_quant_retrain_model(files.config, model, files.record, inputs)


def train_steps(model: nn.Module, optimizer: Any, steps: range) -> list[float]:
    """One step of regression on random data for each number; the losses."""
    model.train()
    losses = []
    for step in steps:
        loss = (model(batch(step)) - 1).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def evaluate(model: nn.Module, x: Tensor) -> Any:
    model.eval()
    with torch.no_grad():
        return model(x)
