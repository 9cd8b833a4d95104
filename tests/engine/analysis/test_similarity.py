"""Similarity against a float64 computation written out here."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from workbench.engine.analysis.similarity import ErrorSums, accumulated_cosine, measure_layers
from workbench.engine.files.config import default_config
from workbench.engine.flows.ptq import calibrate
from workbench.engine.graph.capture import capture


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(-6, 0))
def test_error_sums_resolve_small_errors(seed, exponent):
    rng = np.random.default_rng(seed)
    y = rng.standard_normal(500).astype(np.float32)
    other = (y + 10**exponent * rng.standard_normal(500)).astype(np.float32)
    sums = ErrorSums()
    sums.add(torch.from_numpy(y[:200]), torch.from_numpy(other[:200]))
    sums.add(torch.from_numpy(y[200:]), torch.from_numpy(other[200:]))
    a, b = y.astype(np.longdouble), other.astype(np.longdouble)
    error = 1 - (a @ b) / np.sqrt((a @ a) * (b @ b))
    assert sums.cosine_error == pytest.approx(float(error), rel=2e-3, abs=1e-13)
    sqnr = 10 * np.log10((a @ a) / ((b - a) @ (b - a)))
    assert sums.sqnr_db == pytest.approx(float(sqnr), rel=1e-4)


def test_error_sums_at_the_edges():
    zero, one = torch.zeros(3), torch.ones(3)

    def sums(reference, other):
        result = ErrorSums()
        result.add(reference, other)
        return result

    assert sums(zero, one).cosine == 1
    assert sums(one, zero).cosine == 0
    assert sums(one, one).cosine == 1 and sums(one, one).sqnr_db == math.inf
    assert sums(one, -one).cosine == pytest.approx(-1)


@pytest.fixture
def prepared():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 4)
    ).eval()
    batches = [(torch.randn(5, 3, 8, 8),) for _ in range(2)]
    captured = capture(model, batches[0])
    calibration = calibrate(captured, default_config(captured.layers, batch_num=2), batches)
    return model, calibration, batches


def quantize(x, scale, offset):
    return (np.clip(np.round(x / scale) + offset, -128, 127) - offset) * scale


def test_one_layer_against_arithmetic_by_hand(prepared):
    model, calibration, batches = prepared
    record = calibration.finalize()
    measured = measure_layers(calibration.folded, record, batches)
    assert list(measured) == ["0", "2", "4"]
    entry = record.layers["4"]
    with torch.no_grad():
        x = torch.cat([model[:4](b[0]) for b in batches]).double().numpy()
    w, b = model[4].weight.detach().double().numpy(), model[4].bias.detach().double().numpy()
    scale = entry.scale_w[0]
    wq = np.clip(np.round(w / scale), -128, 127) * scale
    step = scale * entry.scale_d
    y = x @ w.T + b
    other = quantize(x, entry.scale_d, entry.offset_d) @ wq.T + np.round(b / step) * step
    cosine_error = 1 - (y * other).sum() / np.sqrt((y**2).sum() * (other**2).sum())
    assert 1 - measured["4"].cosine == pytest.approx(cosine_error, rel=0.02)
    sqnr = 10 * np.log10((y**2).sum() / ((other - y) ** 2).sum())
    assert measured["4"].sqnr_db == pytest.approx(sqnr, abs=0.05)


def test_accumulated_error_of_the_first_layer_is_its_own(prepared):
    _, calibration, batches = prepared
    record = calibration.finalize()
    own = measure_layers(calibration.folded, record, batches[:1])
    through = accumulated_cosine(calibration.folded, record, batches[0])
    assert through["0"] == pytest.approx(own["0"].cosine, abs=1e-9)
    assert through["4"] <= own["4"].cosine + 1e-6
    assert accumulated_cosine(calibration.folded, record, batches[0], byte_budget=0) == {}
