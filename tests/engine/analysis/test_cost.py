"""Cost of a small net, counted by hand."""

import torch
from torch import nn

from workbench.engine.analysis.cost import model_cost
from workbench.engine.files.config import default_config
from workbench.engine.graph.capture import capture


def test_size_and_bit_operations_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    captured = capture(model, (torch.randn(2, 3, 8, 8),))
    parameters = 4 * (4 * 27 + 4 + 288 + 2)
    macs = 36 * 4 * 27 + 288
    everything = model_cost(captured.layers, None, parameters)
    assert (everything.size_bytes, everything.bit_operations) == (parameters, macs * 1024)
    config = default_config(captured.layers, skip_layers=["2"])
    mixed = model_cost(captured.layers, config, parameters)
    assert mixed.bit_operations == 36 * 4 * 27 * 64 + 288 * 1024
    assert mixed.size_bytes == (108 + 4 * 8) + 4 * 4 + 4 * (288 + 2)
