"""A network of Linear layers with input channels that stand out, and its data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

OUTLIER = 3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x))


class LinearNet(nn.Module):
    """``fc`` is the end of another layer's name; ``conv`` is no Linear, ``lm_head`` stays float."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 1)
        self.fc = nn.Linear(64, 64)
        self.block = Block()
        self.lm_head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.lm_head(self.block(torch.relu(self.fc(self.conv(x).flatten(1)))))


def make_linear_net() -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    net = LinearNet()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        net.conv.weight.fill_(1.0)
        net.conv.bias.zero_()
        # The data is large there, and the weights that read it are small.
        net.fc.weight[:, OUTLIER] /= 50.0
    return net.eval()


def make_linear_data(batches: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    net, found = make_linear_net(), []
    for _ in range(batches):
        x = torch.randn(32, 1, 4, 4, generator=generator)
        x.flatten(1)[:, OUTLIER] *= 50.0
        with torch.no_grad():
            found.append((x, net(x).argmax(1)))
    return found


class Branching(nn.Module):
    """What a tensor holds decides the way: nothing that ``torch.export`` can capture."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y.relu() if float(y.sum()) > 0 else y.abs())


def make_branching_net() -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    net = Branching()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return net.eval()
