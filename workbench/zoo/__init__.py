"""Example models with trained weights and the data to calibrate and judge them with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from workbench.zoo.catalogue import CATALOGUE, entry
from workbench.zoo.data import DigitsData, digits
from workbench.zoo.training_data import TrainingDigits
from workbench.zoo.weights_io import read_weights

__all__ = ["DigitsData", "TrainingDigits", "ZooModel", "example_input", "load", "names"]


@dataclass(frozen=True)
class ZooModel:
    """An example: a trained model in evaluation mode and its data.

    ``metric`` is ``top1`` (share of right answers) or ``psnr`` (dB, peak 1, against
    ``data.targets``).
    """

    name: str
    title: str
    description: str
    model: nn.Module
    metric: Literal["top1", "psnr"]
    data: DigitsData


def names() -> tuple[str, ...]:
    """The names `load` accepts."""
    return tuple(CATALOGUE)


def load(name: str) -> ZooModel:
    """The example called ``name``, its model a fresh copy; raises `ValueError` if unknown."""
    found = entry(name)
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays
        model = found.build()
    model.load_state_dict(read_weights(name))
    model.eval()
    metric = cast(Literal["top1", "psnr"], found.metric)
    return ZooModel(name, found.title, found.description, model, metric, digits(found.task))


def example_input(name: str) -> tuple[Tensor, ...]:
    """Positional arguments for one call of the model ``name``: two calibration pictures.

    Two rather than one, so that a program exported from it keeps its batch dynamic.
    """
    return (digits(entry(name).task).calibration[:2].clone(),)
