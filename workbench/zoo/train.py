"""Train an example and write its weights: ``python -m workbench.zoo.train NAME``.

Runs on one thread with fixed seeds, so that the same machine and torch version give the
same weights again; a few minutes each. ``digits-mobilenet-hard`` is not trained but made
from the weights of ``digits-mobilenet`` (see `workbench.zoo.unbalance`).
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.zoo.catalogue import CATALOGUE, entry
from workbench.zoo.data import NOISE, augment, digits, split
from workbench.zoo.score import psnr, top1
from workbench.zoo.unbalance import unbalance
from workbench.zoo.weights_io import read_weights, write_weights

logger = logging.getLogger("workbench.zoo.train")

WEIGHTS = Path(__file__).parent / "weights"
BATCH = 128
COPIES = 3
"""How often each training digit is drawn, anew, in one epoch."""


@dataclass(frozen=True)
class Recipe:
    """How long and how fast one example learns."""

    epochs: int
    learning_rate: float
    weight_decay: float
    smoothing: float = 0.05


RECIPES = {
    "digits-resnet": Recipe(45, 6e-3, 2e-2),
    "digits-mobilenet": Recipe(55, 6e-3, 2e-2),
    "digits-vit": Recipe(80, 2e-3, 5e-2),
    "digits-autoencoder": Recipe(40, 6e-3, 1e-3),
}


def train(name: str, *, seed: int = 0) -> nn.Module:
    """The example ``name``, trained from random weights (or derived), in evaluation mode."""
    if name == "digits-mobilenet-hard":
        model = entry(name).build()
        model.load_state_dict(read_weights("digits-mobilenet"))
        unbalance(model)
        return model.eval()
    recipe, found = RECIPES[name], entry(name)
    torch.manual_seed(seed)
    generator = np.random.Generator(np.random.PCG64(seed))
    model = found.build()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    steps = len(split()[0].labels) * COPIES // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=steps * recipe.epochs, pct_start=0.2
    )
    for epoch in range(recipe.epochs):
        model.train()
        total = 0.0
        for pictures, labels in _epoch(generator, found.task):
            loss = _loss(model(pictures), pictures, labels, found.task, recipe.smoothing)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        logger.info("%s: epoch %d of %d, loss %.4f", name, epoch + 1, recipe.epochs, total / steps)
    return model.eval()


def _epoch(generator: np.random.Generator, task: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of freshly placed training digits, in random order, all of one size."""
    digits_ = split()[0]
    order = generator.permutation(len(digits_.labels) * COPIES) % len(digits_.labels)
    noise = NOISE if task == "classify" else 0.0
    pictures = augment(digits_.images[order], generator, noise=noise)
    for start in range(0, len(order) - BATCH + 1, BATCH):
        batch = slice(start, start + BATCH)
        yield (
            torch.from_numpy(pictures[batch]).unsqueeze(1),
            torch.from_numpy(digits_.labels[order[batch]]),
        )


def _loss(output: Tensor, pictures: Tensor, labels: Tensor, task: str, smoothing: float) -> Tensor:
    if task == "reconstruct":
        return F.mse_loss(output, pictures)
    return F.cross_entropy(output, labels, label_smoothing=smoothing)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m workbench.zoo.train``."""
    parser = argparse.ArgumentParser(
        prog="python -m workbench.zoo.train", description="Train an example of the workbench."
    )
    parser.add_argument("name", choices=[*CATALOGUE])
    parser.add_argument("--output", type=Path, help="where to write (default: into the package)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)

    model = train(options.name)
    path = options.output or WEIGHTS / f"{options.name}.safetensors"
    write_weights(model, path)
    found = entry(options.name)
    data = digits(found.task)
    measure = top1 if found.metric == "top1" else psnr
    logger.info(
        "%s: %s %.4f, written to %s", options.name, found.metric, measure(model, data), path
    )


if __name__ == "__main__":
    main()
