"""Histograms against NumPy on the tensors themselves."""

import numpy as np
import pytest
import torch
from torch import nn

from workbench.engine.analysis.histograms import layer_histogram
from workbench.engine.files.config import default_config
from workbench.engine.flows.ptq import calibrate
from workbench.engine.graph.capture import capture


@pytest.fixture
def prepared():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    batches = [(torch.randn(2, 3, 8, 8),) for _ in range(2)]
    captured = capture(model, batches[0])
    calibration = calibrate(captured, default_config(captured.layers, batch_num=2), batches)
    return model, calibration, batches


def test_counts_and_clip_range(prepared):
    model, calibration, batches = prepared
    record = calibration.finalize()
    hist = layer_histogram(calibration.folded, record, "2", batches, bins=32)
    with torch.no_grad():
        x = torch.cat([model[:2](b[0]) for b in batches]).numpy()
    counts, edges = np.histogram(x, 32, (x.min(), x.max()))
    np.testing.assert_allclose(hist.activation_edges, edges, rtol=1e-6)
    assert hist.activation_counts.sum() == x.size
    assert np.abs(hist.activation_counts - counts).sum() <= 4  # values on an edge
    entry = record.layers["2"]
    assert hist.activation_low == pytest.approx((-128 - entry.offset_d) * entry.scale_d)
    assert hist.activation_high == pytest.approx((127 - entry.offset_d) * entry.scale_d)
    assert hist.weight_counts.sum() == model[2].weight.numel()
    assert hist.weight_scales.shape == (2,)


def test_unknown_layer_is_said(prepared):
    _, calibration, batches = prepared
    with pytest.raises(ValueError, match="'1'"):
        layer_histogram(calibration.folded, calibration.finalize(), "1", batches)
