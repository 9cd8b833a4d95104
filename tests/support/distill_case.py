"""Small networks to distil, the chapter's golden one among them, and data for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Golden(nn.Module):
    """The network of chapter 50 section 6.4: one ReLU module for two places, a residual add."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.r = nn.ReLU()
        self.c2, self.b2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.c3, self.b3 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(width, 5)
        self.sm = nn.Softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.r(self.b1(self.c1(x)))
        y = self.r(self.b2(self.c2(x)))
        y = self.b3(self.c3(y))
        x = F.relu(x + y)
        return self.sm(self.fc(torch.flatten(self.pool(x), 1)))


class Chain(nn.Module):
    """``t(l2(a(l1(x))))``, the first layer with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.a = nn.Linear(6, 8), nn.ReLU()
        self.l2, self.t = nn.Linear(8, 4, bias=False), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.t(self.l2(self.a(self.l1(x))))


def plain_cnn(width: int = 8) -> nn.Sequential:
    """Four convolutions in one chain, the second activation in place."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, groups=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, stride=2, padding=1),
        nn.LeakyReLU(),
        nn.Conv2d(width, width, 1),
    )


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """``model`` in eval mode; its batch norms have statistics, and factors of both signs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                shape = module.weight.shape
                module.weight.copy_(torch.randn(shape, generator=generator))
                module.bias.copy_(torch.randn(shape, generator=generator))
                module.running_mean.copy_(torch.randn(shape, generator=generator))
                module.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
    return model.eval()


def pictures(count: int = 32, size: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def loader(*tensors: Tensor, batch_size: int = 8) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)
