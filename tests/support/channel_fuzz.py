"""Random networks of operators that move, tie and mix channels."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RandomNet(nn.Module):
    """A chain of ``steps`` random operators on a pool of [N, C, 6, 6] tensors, then a classifier.

    Which operators and on what follows from ``seed`` alone.
    """

    def __init__(self, seed: int, steps: int = 7) -> None:
        super().__init__()
        self.draw = random.Random(seed)
        self.layers = nn.ModuleDict()
        self.plan: list[tuple[str, tuple[int, ...], str]] = []
        widths = [3]
        for number in range(steps):
            self._add(number, widths)
        self.flat = self.draw.random() < 0.5
        last = widths[-1] * (36 if self.flat else 1)
        self.hidden, self.fc = nn.Linear(last, 6), nn.Linear(6, 3)

    def _add(self, number: int, widths: list[int]) -> None:
        kinds = ["conv", "conv", "grouped", "depthwise", "norm", "act", "prelu", "pool", "se"]
        if widths[-1] % 2 == 0:
            kinds += ["chunk", "shuffle", "split"]
        kinds += ["cat", "transpose", "up"]
        twins = [i for i in range(1, len(widths) - 1) if widths[i] == widths[-1]]
        kinds += ["add", "add", "mul"] if twins else []
        kind = self.draw.choice(kinds) if widths[-1] > 3 or number else "conv"
        key, width = f"l{number}", widths[-1]
        sources: tuple[int, ...] = (len(widths) - 1,)
        out = width
        if kind == "conv":
            out = self.draw.choice([4, 6, 8, 12])
            self.layers[key] = nn.Conv2d(width, out, 3, padding=1)
        elif kind == "grouped":
            groups = self.draw.choice([g for g in (1, 2, 3, 4) if width % g == 0])
            out = groups * self.draw.choice([2, 4])
            self.layers[key] = nn.Conv2d(width, out, 1, groups=groups)
        elif kind == "depthwise":
            out = width * self.draw.choice([1, 2])
            self.layers[key] = nn.Conv2d(width, out, 3, padding=1, groups=width)
        elif kind == "up":
            groups = self.draw.choice([g for g in (1, 2) if width % g == 0])
            out = groups * self.draw.choice([2, 3])
            self.layers[key] = nn.ConvTranspose2d(width, out, 3, padding=1, groups=groups)
        elif kind == "norm":
            self.layers[key] = nn.BatchNorm2d(width)
        elif kind == "prelu":
            self.layers[key] = nn.PReLU(self.draw.choice([1, width]))
        elif kind == "se":
            self.layers[key] = nn.Sequential(
                nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1), nn.Sigmoid()
            )
        elif kind in ("add", "mul"):
            sources += (self.draw.choice(twins),)
        elif kind == "cat":
            sources += (self.draw.randrange(len(widths)),)
            out = width + widths[sources[1]]
        elif kind == "split":
            out = width // 2
        self.plan.append((kind, sources, key))
        widths.append(out)

    def forward(self, x: Tensor) -> Tensor:
        pool = [x]
        for kind, sources, key in self.plan:
            pool.append(self._apply(kind, [pool[i] for i in sources], key))
        x = pool[-1].flatten(1) if self.flat else pool[-1].mean((2, 3))
        return self.fc(F.gelu(self.hidden(x)))

    def _apply(self, kind: str, given: list[Tensor], key: str) -> Tensor:
        x = given[0]
        if kind in ("conv", "grouped", "depthwise", "up", "norm", "prelu"):
            return self.layers[key](x)
        if kind == "act":
            return F.silu(x)
        if kind == "pool":
            return F.max_pool2d(x, 3, 1, 1)
        if kind == "se":
            return x * self.layers[key](F.adaptive_avg_pool2d(x, 1))
        if kind == "add":
            return x + given[1]
        if kind == "mul":
            return x * torch.tanh(given[1])
        if kind == "cat":
            return torch.cat(given, 1)
        if kind == "chunk":
            first, second = x.chunk(2, 1)
            return torch.cat([second, first.abs()], 1)
        if kind == "split":
            first, second = torch.split(x, x.shape[1] // 2, 1)
            return first * torch.sigmoid(second)
        if kind == "shuffle":
            return (
                x.view(x.shape[0], 2, x.shape[1] // 2, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
            )
        return x.permute(0, 2, 3, 1).mul(2.0).permute(0, 3, 1, 2)
