"""A network, its data and a slow metric: small enough that a job takes no time, named as code."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.conv2(x))
        return self.fc(x.mean((2, 3)))


def make_net(classes: int = 4) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    net = Net(classes)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return net.eval()


def make_data(batches: int = 4, labels: bool = True) -> list[Any]:
    generator = torch.Generator().manual_seed(4)
    net = make_net()
    inputs = [torch.randn(8, 3, 8, 8, generator=generator) for _ in range(batches)]
    if not labels:
        return inputs
    with torch.no_grad():
        return [(x, net(x).argmax(dim=1)) for x in inputs]


def slow_metric(model: Any, batches: Iterable[Any]) -> float:
    for inputs, _ in batches:
        model(*inputs)
        time.sleep(0.3)
    return 1.0


def stuck_metric(model: Any, batches: Iterable[Any]) -> float:
    """Never looks at the cancel flag, as a long native call would not."""
    time.sleep(60)
    return 1.0


def make_chain(layers: int = 6) -> nn.Module:
    """Convolutions one after the other; the weights of each have a range of their own."""
    generator = torch.Generator().manual_seed(5)
    modules: list[nn.Module] = []
    for i in range(layers):
        conv = nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1)
        with torch.no_grad():
            conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) * 0.3)
            conv.weight[0, 0, 0, 0] = 2.0 * (i % 3)
            conv.bias.zero_()
        modules += [conv, nn.ReLU()]
    return nn.Sequential(*modules).eval()


def counted_metric(model: Any, batches: Iterable[Any]) -> float:
    """Minus the mean squared error; each call takes 0.2 s and leaves a line in a file."""
    reference = make_chain()
    errors = []
    with torch.no_grad():
        for (x,), _ in batches:
            errors.append(float(((model(x) - reference(x)) ** 2).mean()))
    time.sleep(0.2)
    if path := os.environ.get("WORKBENCH_TEST_CALLS"):
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(f"{time.time()}\n")
    return -sum(errors) / len(errors)


def make_training(batches: int = 6) -> list[Any]:
    """Training batches of ``make_net``, other than its evaluation batches."""
    generator = torch.Generator().manual_seed(9)
    net = make_net()
    inputs = [torch.randn(8, 3, 8, 8, generator=generator) for _ in range(batches)]
    with torch.no_grad():
        return [(x, net(x).argmax(dim=1)) for x in inputs]


def slow_training(batches: int = 40) -> Any:
    """Batches that take their time, so that a training can be stopped or killed in the middle."""
    return _Slow(make_training(batches))


class _Slow:
    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        for batch in self.batches:
            time.sleep(0.05)
            yield batch


def held_metric(model: Any, batches: Iterable[Any]) -> float:
    """Never ends, and looks at no flag, while the file ``WORKBENCH_TEST_HOLD`` exists."""
    while os.path.exists(os.environ["WORKBENCH_TEST_HOLD"]):
        time.sleep(0.05)
    return sum(float(model(*inputs).mean()) for inputs, _ in batches)
