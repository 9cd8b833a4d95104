"""Rounding by brute force: distances to all values of a format, in float64."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch


def nearest(
    numbers: npt.ArrayLike, magnitudes: Sequence[float], ties: Literal["away", "even"]
) -> npt.NDArray[np.int64]:
    """Index of the nearest of the ascending ``magnitudes`` to each |number|; no NaN.

    Of two equally near ones the upper, or the one of even index. Distances between float32
    numbers within a factor of two are exact in float64, so ties are seen.
    """
    levels = np.asarray(magnitudes, dtype=np.float64)
    size = np.minimum(np.abs(np.asarray(numbers, dtype=np.float64)), levels[-1])
    found = np.empty(size.shape, dtype=np.int64)
    for start in range(0, len(size), 20_000):
        distance = np.abs(size[start : start + 20_000, None] - levels)
        least = distance.min(axis=1, keepdims=True)
        lower = (distance == least).argmax(axis=1)
        tie = (distance == least).sum(axis=1) == 2
        up = np.ones_like(tie) if ties == "away" else lower % 2 == 1
        found[start : start + 20_000] = lower + (tie & up)
    return found


def probes(magnitudes: Sequence[float]) -> npt.NDArray[np.float32]:
    """float32 numbers that try a format: its values, all midpoints, the neighbours of both,
    every bfloat16 and float16, and random bit patterns; both signs, infinities, no NaN."""
    levels = np.asarray(magnitudes, dtype=np.float64)
    points = np.concatenate([levels, (levels[1:] + levels[:-1]) / 2]).astype(np.float32)
    around = [np.nextafter(points, np.float32(end)) for end in (-np.inf, np.inf)]
    words = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        halves = words.view(np.float16).astype(np.float32)
    brain = (words.astype(np.uint32) << 16).view(np.float32)
    patterns = np.random.default_rng(0).integers(0, 1 << 32, 20_000, dtype=np.uint32)
    bits = patterns.view(np.float32)
    every = np.concatenate([points, *around, halves, brain, bits])
    every = np.concatenate([every, -every])
    return every[~np.isnan(every)]


def as_bits(values: torch.Tensor) -> list[int]:
    """Bit patterns of float32 ``values``: tells -0.0 from 0.0."""
    return values.contiguous().view(torch.int32).flatten().tolist()
