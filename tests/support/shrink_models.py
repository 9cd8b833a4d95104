"""A network with coupled channels and a convolution that can be decomposed; its data as files."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CLASSES = 4


class Wide(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Conv2d(width, 12, 1)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.conv(x))
        return self.fc(torch.relu(self.head(x)).mean((2, 3)))


def make_wide() -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    net = Wide()
    with torch.no_grad():
        for parameter in net.parameters():
            fan = max(1, parameter[0].numel()) if parameter.dim() > 1 else 4
            values = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(values * (1.5 / fan) ** 0.5)
        net.norm.running_var.fill_(1.5)
    return net.eval()


def write_data(path: Path, *, batches: int, seed: int, labels: bool = True) -> Path:
    """Pictures, and as labels what the network says of them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8 * batches, 3, 8, 8, generator=generator)
    arrays = {"x": x.numpy()}
    if labels:
        with torch.no_grad():
            arrays["labels"] = make_wide()(x).argmax(1).numpy()
    np.savez(path, **arrays)
    return path


def patient_metric(model: Any, batches: Iterable[Any]) -> float:
    """Long enough that a job can be cancelled in it."""
    for inputs, _ in batches:
        model(*inputs)
        time.sleep(0.5)
    return 1.0


def make_linear() -> nn.Module:
    """Nothing but its own output: no channel can go."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)).eval()
