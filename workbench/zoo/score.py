"""The two metrics of the examples."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from workbench.zoo.data import DigitsData


def outputs(model: nn.Module, data: DigitsData) -> Tensor:
    """The model's outputs for all evaluation pictures, in their order."""
    pictures, size = data.evaluation, data.batch_size
    with torch.inference_mode():
        return torch.cat([model(pictures[at : at + size]) for at in range(0, len(pictures), size)])


def top1(model: nn.Module, data: DigitsData) -> float:
    """Share of evaluation pictures whose largest output is their label's."""
    return float((outputs(model, data).argmax(1) == data.targets).double().mean())


def psnr(model: nn.Module, data: DigitsData) -> float:
    """Peak signal-to-noise ratio of all outputs against the targets, in dB, peak 1."""
    error = (outputs(model, data) - data.targets).double().square().mean()
    return -10.0 * math.log10(float(error))
