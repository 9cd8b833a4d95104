"""Handwritten digits, shifted, turned, scaled and noisy, the same on every machine.

Source: the 1,797 digits (8x8, values 0 to 16) that ship with scikit-learn. A fixed split
keeps 600 of them for evaluation; each is drawn `EVALUATION_COPIES` times with its own
random shift, rotation, scale and noise, so that an accuracy means something to a few
tenths of a point. Calibration pictures come from the other 1,197.

Randomness is `numpy.random.PCG64` and uniform numbers only, the arithmetic is float64 and
each picture is rounded to 256 grey levels, which absorbs last-digit differences between
machines: same bytes everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IMAGE_SIZE = 32
TEST_DIGITS = 600
EVALUATION_COPIES = 7
CALIBRATION_SAMPLES = 256
BATCH_SIZE = 128
NOISE = 0.25
"""Largest standard deviation of the noise of one picture, of a range of 1."""

_CHUNK = 32
"""Pictures drawn at once: few enough for their temporaries to stay in the cache."""

_SPLIT_SEED = 1797
_EVALUATION_SEED = 20
_CALIBRATION_SEED = 21


@dataclass(frozen=True)
class DigitsData:
    """Calibration and evaluation pictures, [N, 1, 32, 32] float32 in [0, 1].

    ``labels`` is [N] int64 for the evaluation pictures, or None where the pictures
    themselves are what the model should return.
    """

    calibration: Tensor
    evaluation: Tensor
    labels: Tensor | None
    batch_size: int = BATCH_SIZE

    @property
    def targets(self) -> Tensor:
        """What the metric compares with: the labels, or the pictures if there are none."""
        return self.evaluation if self.labels is None else self.labels


@dataclass(frozen=True)
class Digits:
    """Unchanged digits: ``images`` [N, 8, 8] float64 in [0, 1] and ``labels`` [N] int64."""

    images: NDArray[np.float64]
    labels: NDArray[np.int64]


@lru_cache(maxsize=1)
def split() -> tuple[Digits, Digits]:
    """The digits to train with (1,197) and those to evaluate with (600)."""
    table = _digits_table()
    images = table[:, :-1].reshape(-1, 8, 8) / 16.0
    labels = table[:, -1].astype(np.int64)
    # Sorting random numbers, not Generator.permutation: its algorithm is not promised to stay.
    order = np.argsort(_generator(_SPLIT_SEED).random(len(labels)), kind="stable")
    test, train = order[:TEST_DIGITS], order[TEST_DIGITS:]
    return Digits(images[train], labels[train]), Digits(images[test], labels[test])


def _digits_table() -> NDArray[np.float64]:
    """One row per digit: 64 pixels and the label.

    Read straight from scikit-learn's folder, because importing scikit-learn takes seconds.
    """
    package = find_spec("sklearn")
    for folder in (package.submodule_search_locations or ()) if package else ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    return np.column_stack([bunch.data, bunch.target])


def augment(
    images: NDArray[np.float64], generator: np.random.Generator, *, noise: float
) -> NDArray[np.float32]:
    """Pictures [N, 32, 32] float32 in [0, 1] of digits [N, 8, 8], each placed at random.

    Shift up to 3 pixels of 32, rotation up to 18 degrees, scale 0.8 to 1.15, contrast 0.6 to
    1, and noise of standard deviation up to ``noise`` (a different one for each picture).
    """
    chunks = range(0, len(images), _CHUNK)
    pictures = [_augment(images[at : at + _CHUNK], generator, noise) for at in chunks]
    return np.concatenate(pictures)


def _augment(
    images: NDArray[np.float64], generator: np.random.Generator, noise: float
) -> NDArray[np.float32]:
    count = len(images)
    shift = (generator.random((2, count, 1, 1)) * 2 - 1) * 3.0
    angle = (generator.random((count, 1, 1)) * 2 - 1) * np.deg2rad(18.0)
    scale = 0.8 + 0.35 * generator.random((count, 1, 1))
    contrast = 0.6 + 0.4 * generator.random((count, 1, 1))
    level = noise * generator.random((count, 1, 1))

    centre = (IMAGE_SIZE - 1) / 2
    axis = np.arange(IMAGE_SIZE) - centre
    rows, columns = axis[:, None] - shift[0], axis[None, :] - shift[1]
    ratio = images.shape[-1] / IMAGE_SIZE
    cosine, sine = np.cos(angle) / scale * ratio, np.sin(angle) / scale * ratio
    middle = (images.shape[-1] - 1) / 2
    picture = _bilinear(
        images,
        cosine * rows - sine * columns + middle,
        sine * rows + cosine * columns + middle,
    )
    picture *= contrast
    if noise > 0:
        # The sum of three uniform numbers is near enough to normal and needs no logarithm.
        normal = generator.random((3, *picture.shape)).sum(axis=0)
        picture += (normal - 1.5) * (2.0 * level)
    grey = np.rint(np.clip(picture, 0.0, 1.0) * 255.0)
    return grey.astype(np.float32) / np.float32(255.0)


def _bilinear(
    images: NDArray[np.float64], rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Values of images [N, 8, 8] at positions [N, H, W]; zero outside."""
    count, size = len(images), images.shape[-1]
    side = size + 2
    padded = np.zeros((count, side, side))
    padded[:, 1:-1, 1:-1] = images
    rows = np.clip(rows + 1.0, 0.0, size + 0.999)
    columns = np.clip(columns + 1.0, 0.0, size + 0.999)
    top, left = rows.astype(np.int64), columns.astype(np.int64)
    down, right = rows - top, columns - left
    flat = padded.reshape(-1)
    corner = (np.arange(count) * side * side)[:, None, None] + top * side + left
    upper = flat[corner] * (1.0 - right) + flat[corner + 1] * right
    lower = flat[corner + side] * (1.0 - right) + flat[corner + side + 1] * right
    return np.asarray(upper * (1.0 - down) + lower * down)


@lru_cache(maxsize=2)
def digits(task: str = "classify") -> DigitsData:
    """The data of one task: ``classify`` (noisy, with labels) or ``reconstruct`` (no noise).

    Cached; do not write into the tensors.
    """
    if task not in ("classify", "reconstruct"):
        raise ValueError(f"task is {task!r}; allowed: 'classify', 'reconstruct'")
    noise = NOISE if task == "classify" else 0.0
    train, test = split()
    evaluation = augment(
        np.tile(test.images, (EVALUATION_COPIES, 1, 1)), _generator(_EVALUATION_SEED), noise=noise
    )
    calibration = augment(
        train.images[:CALIBRATION_SAMPLES], _generator(_CALIBRATION_SEED), noise=noise
    )
    labels = torch.from_numpy(np.tile(test.labels, EVALUATION_COPIES))
    return DigitsData(
        calibration=torch.from_numpy(calibration).unsqueeze(1),
        evaluation=torch.from_numpy(evaluation).unsqueeze(1),
        labels=labels if task == "classify" else None,
    )


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))
