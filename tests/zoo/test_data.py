"""The digits are the same everywhere: split, shapes, grey levels and checksums."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest
import torch

from workbench.zoo.data import CALIBRATION_SAMPLES, augment, digits, split


def sha256(tensor: torch.Tensor) -> str:
    levels = (tensor * 255.0).round().to(torch.uint8)
    return hashlib.sha256(levels.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("task", "evaluation", "calibration"),
    [
        (
            "classify",
            "5989070992736bd319f7c7bec7db53b1af4539da3b0728360686aec094e0a76e",
            "bd5408024f38f3d8e13a836b9afa848896684d53dfcf495e6accaa46ccf3ad41",
        ),
        (
            "reconstruct",
            "9a604d079d1ad11a27ab42e52e77f78a3a76838656179ba9cb672523043bc687",
            "426bbe468b782de546f54f9d0dd7e3bb96837f874fb25d931d4f5879a2dbb5a9",
        ),
    ],
    ids=["classify", "reconstruct"],
)
def test_pictures_are_the_same_bytes_everywhere(
    task: str, evaluation: str, calibration: str
) -> None:
    data = digits(task)
    assert sha256(data.evaluation) == evaluation
    assert sha256(data.calibration) == calibration


def test_shapes_and_ranges() -> None:
    data = digits("classify")
    assert data.evaluation.shape == (4200, 1, 32, 32)
    assert data.calibration.shape == (CALIBRATION_SAMPLES, 1, 32, 32)
    assert data.evaluation.dtype == data.calibration.dtype == torch.float32
    assert data.evaluation.min() == 0.0
    assert data.evaluation.max() == 1.0
    assert data.labels is not None
    assert data.labels.dtype == torch.int64
    assert torch.equal(data.labels[:600], data.labels[600:1200])
    assert data.targets is data.labels
    assert digits("reconstruct").labels is None
    assert digits("reconstruct").targets is digits("reconstruct").evaluation


def test_split_is_scikit_learns_digits_and_disjoint() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    train, test = split()
    assert len(train.labels) == 1197
    assert len(test.labels) == 600
    together = np.concatenate([train.images, test.images]) * 16.0
    labels = np.concatenate([train.labels, test.labels])
    rows = np.column_stack([together.reshape(-1, 64), labels])
    original = np.column_stack([bunch.data, bunch.target])
    assert np.array_equal(rows[np.lexsort(rows.T[::-1])], original[np.lexsort(original.T[::-1])])
    assert np.bincount(test.labels, minlength=10).min() >= 45


def test_data_loads_within_a_second_of_processor_time() -> None:
    digits.cache_clear()
    split.cache_clear()
    start = time.process_time()
    digits("classify")
    assert time.process_time() - start < 1.0


def test_augmentation_is_bilinear_interpolation() -> None:
    """Undo the known random numbers and compare with a loop over pixels."""
    image = np.arange(64, dtype=np.float64).reshape(1, 8, 8) / 63.0
    picture = augment(image, np.random.Generator(np.random.PCG64(3)), noise=0.0)[0]
    draw = np.random.Generator(np.random.PCG64(3))
    down, across = (draw.random(2) * 2 - 1) * 3.0
    angle = (draw.random() * 2 - 1) * np.pi / 10
    scale, contrast = 0.8 + 0.35 * draw.random(), 0.6 + 0.4 * draw.random()
    padded = np.pad(image[0], 1)
    for row in range(32):
        for column in range(32):
            r, c = row - 15.5 - down, column - 15.5 - across
            y = (np.cos(angle) * r - np.sin(angle) * c) / scale / 4 + 3.5 + 1
            x = (np.sin(angle) * r + np.cos(angle) * c) / scale / 4 + 3.5 + 1
            expected = sum(
                padded[i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
                for i in range(10)
                for j in range(10)
                if abs(y - i) < 1 and abs(x - j) < 1
            )
            assert picture[row, column] == pytest.approx(expected * contrast, abs=0.51 / 255)


def test_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="classify"):
        digits("segment")
