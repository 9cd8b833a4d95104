"""Sensitivity of one layer: how similar its quantised output is to its float output."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class SensitivityBase:
    """Base of sensitivities. Larger values mean less sensitive, unless the class says otherwise.

    Source: specification chapter 20 section 3.
    """

    larger_is_better = True

    def compare(self, data: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        """``data``, ``other``: flat outputs of the float and of the quantised layer, one batch."""
        raise NotImplementedError

    @staticmethod
    def normalize_data(data: NDArray[np.float32]) -> NDArray[np.float32]:
        """``data`` mapped linearly to [0, 1]."""
        low, high = data.min(), data.max()
        result: NDArray[np.float32] = (data - low) / (high - low + np.finfo(np.float32).eps)
        return result


class CosineSimilaritySensitivity(SensitivityBase):
    """Cosine mapped to [0, 1], summed in float64. Source: chapter 20 section 3.1."""

    def compare(self, data: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        if not data.any():
            return 1.0
        if not other.any():
            return 0.0
        a, b = data.astype(np.float64), other.astype(np.float64)
        return float(0.5 + 0.5 * (a @ b) / np.sqrt((a @ a) * (b @ b)))


class SQNRSensitivity(SensitivityBase):
    """Signal to quantisation noise ratio in decibel."""

    def compare(self, data: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        signal = data.astype(np.float64)
        noise = other.astype(np.float64) - signal
        power = float(noise @ noise)
        if power == 0.0:
            return float(np.finfo(np.float64).max)
        return float(10 * np.log10(max(float(signal @ signal), 1e-300) / power))


class MSESensitivity(SensitivityBase):
    """Mean squared error; smaller means less sensitive."""

    larger_is_better = False

    def compare(self, data: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        noise = other.astype(np.float64) - data.astype(np.float64)
        return float(np.mean(noise**2))


class EndToEndSensitivity(CosineSimilaritySensitivity):
    """Compares the network's outputs instead of the layer's: only this layer is quantised."""


BY_NAME: dict[str, type[SensitivityBase]] = {
    "CosineSimilarity": CosineSimilaritySensitivity,
    "SQNR": SQNRSensitivity,
    "MSE": MSESensitivity,
    "EndToEnd": EndToEndSensitivity,
}
