"""Sensitivities against the values of chapter 20 and a long-double computation."""

import numpy as np
import pytest

from workbench.engine.search.sensitivity import (
    CosineSimilaritySensitivity,
    MSESensitivity,
    SensitivityBase,
    SQNRSensitivity,
)

A = np.array([1.0, 2.0, -3.0, 0.5], np.float32)
ZERO = np.zeros(4, np.float32)


@pytest.mark.parametrize(
    ("data", "other", "expected"),
    [
        (ZERO, A, 1.0),
        (A, ZERO, 0.0),
        (A, 3 * A, 1.0),
        (A, -A, 0.0),
        (np.array([1, 0], np.float32), np.array([0, 2], np.float32), 0.5),
    ],
)
def test_cosine_values(data, other, expected):
    assert CosineSimilaritySensitivity().compare(data, other) == pytest.approx(expected, abs=1e-12)


def test_cosine_of_a_million_values():
    rng = np.random.default_rng(0)
    a = rng.standard_normal(10**6).astype(np.float32) + 3
    b = a + 1e-3 * rng.standard_normal(10**6).astype(np.float32)
    x, y = a.astype(np.longdouble), b.astype(np.longdouble)
    reference = 0.5 + 0.5 * (x @ y) / np.sqrt((x @ x) * (y @ y))
    assert CosineSimilaritySensitivity().compare(a, b) == pytest.approx(float(reference), abs=1e-6)


def test_mse_and_sqnr_by_hand():
    other = A + np.array([0.5, 0, 0, -0.5], np.float32)
    assert MSESensitivity().compare(A, other) == pytest.approx(0.125)
    assert not MSESensitivity.larger_is_better
    assert SQNRSensitivity().compare(A, other) == pytest.approx(10 * np.log10(14.25 / 0.5))


def test_normalize_data_spans_zero_to_one():
    v = SensitivityBase.normalize_data(A)
    assert v.min() == 0 and v.max() == pytest.approx(1)
