"""A user's network whose one wide convolution is two narrow ones in disguise, with its data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

RANK = 8


class WideNet(nn.Module):
    """3×8×8 pictures, 10 classes; ``wide`` (64 → 64, 3×3) is a product of rank ``RANK``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 1)
        self.wide = nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.wide(torch.relu(self.stem(x))))
        features: torch.Tensor = self.head(y.mean((2, 3)))
        return features


def write_wide_net(folder: Path) -> tuple[Path, Path]:
    """An exported program and an ``.npz`` with labels; returns both."""
    torch.manual_seed(0)
    net = WideNet().eval()
    vertical, horizontal = torch.randn(RANK, 64, 3), torch.randn(64, RANK, 3)
    with torch.no_grad():
        net.wide.weight.copy_(0.02 * torch.einsum("rih,orw->oihw", vertical, horizontal))
    pictures = torch.rand(32, 3, 8, 8)
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (pictures[:4],), dynamic_shapes={"x": {0: batch}})
    model, data = folder / "wide.pt2", folder / "wide.npz"
    torch.export.save(program, model)
    labels = net(pictures).argmax(1).numpy()
    np.savez(data, x=pictures.numpy(), labels=labels)
    return model, data
