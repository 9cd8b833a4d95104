"""The digits to train with: placed anew in every epoch, in an order of its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from workbench.zoo.catalogue import entry
from workbench.zoo.data import BATCH_SIZE, NOISE, augment, split


class TrainingDigits:
    """Batches of (pictures [N, 1, 32, 32] float32, target) of the 1,197 training digits.

    ``target`` is [N] int64, or the pictures themselves where an example reconstructs them. Each
    digit is drawn ``copies`` times an epoch. An epoch depends on ``seed`` and its number alone, so
    that an interrupted training finds the same pictures again; whole batches only.
    """

    def __init__(
        self, name: str, *, batch_size: int = BATCH_SIZE, copies: int = 3, seed: int = 0
    ) -> None:
        self.batch_size, self.copies, self.seed = batch_size, copies, seed
        self.reconstruct = entry(name).task == "reconstruct"
        self._epoch = 0
        if batch_size > self.samples:
            raise ValueError(f"batch_size is {batch_size}; an epoch has {self.samples} pictures")

    @property
    def samples(self) -> int:
        """Pictures of one epoch, those of a last batch that is not whole included."""
        return len(split()[0].labels) * self.copies

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next pass is."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self.samples // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        digits = split()[0]
        generator = np.random.Generator(np.random.PCG64([self.seed, self._epoch]))
        # Sorting random numbers, not Generator.permutation: its algorithm is not promised to stay.
        order = np.argsort(generator.random(self.samples), kind="stable") % len(digits.labels)
        noise = 0.0 if self.reconstruct else NOISE
        for batch in range(len(self)):
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            pictures = torch.from_numpy(augment(digits.images[rows], generator, noise=noise))
            pictures = pictures.unsqueeze(1)
            labels = torch.from_numpy(digits.labels[rows])
            yield pictures, pictures if self.reconstruct else labels
