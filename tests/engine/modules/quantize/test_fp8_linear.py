"""``FP8Linear`` of float8 checkpoints, as model code defines it, becomes hifloat8."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from small_layers import config, tokens, weights
from torch import Tensor, nn

from workbench.engine import HIFP8_CAST_CFG, convert, quantization_report, quantize
from workbench.engine.numerics.hifloat8 import HIFLOAT8


class FP8Linear(nn.Module):
    """``divide``: code that stores the scale itself under the name of its inverse."""

    def __init__(
        self, features: int, outputs: int, block: Any, divide: bool = False, runs: bool = True
    ) -> None:
        super().__init__()
        self.block_size, self.divide, self.runs = block, divide, runs
        rows, columns = block or (outputs, features)
        shape = (math.ceil(outputs / rows), math.ceil(features / columns))
        generator = torch.Generator().manual_seed(3)
        values = torch.randn(outputs, features, generator=generator) * 40
        self.weight = nn.Parameter(values.to(torch.float8_e4m3fn), requires_grad=False)
        scale = torch.rand(shape, generator=generator) * 0.02 + 0.001
        self.weight_scale_inv = nn.Parameter(1 / scale if divide else scale)
        self.bias = nn.Parameter(torch.randn(outputs, generator=generator))

    def plain_weight(self) -> Tensor:
        out = self.weight.float().clone()
        rows, columns = self.block_size or self.weight.shape
        for i in range(out.shape[0]):
            for j in range(out.shape[1]):
                scale = self.weight_scale_inv[i // rows, j // columns]
                out[i, j] *= 1 / scale if self.divide else scale
        return out

    def forward(self, x: Tensor) -> Tensor:
        if not self.runs:
            raise RuntimeError("no kernel here")
        return (x.float() @ self.plain_weight().t() + self.bias).to(x.dtype)


@pytest.mark.parametrize(
    ("block", "divide", "runs"),
    [
        ((8, 16), False, True),
        ((8, 16), True, True),
        (None, False, True),
        ((8, 16), False, False),
    ],
)
@torch.no_grad()
def test_it_is_converted_without_calibration(
    block: Any, divide: bool, runs: bool, caplog: pytest.LogCaptureFixture
) -> None:
    layer = FP8Linear(40, 12, block, divide, runs)
    model = nn.Sequential(layer)
    with caplog.at_level(logging.WARNING):
        quantize(model, HIFP8_CAST_CFG)
    assert "layer 0 (FP8Linear) is left for convert()" in caplog.text
    assert model[0] is layer
    convert(model)
    assert type(model[0]).__name__ == "NpuHIF8Linear"
    weight = layer.plain_weight()
    scale = weight.abs().amax(1, keepdim=True) / 16
    x = tokens(3, 2, 40)
    token = x.abs().amax(-1, keepdim=True) / 15
    moved = HIFLOAT8.round(x / token) * token
    expected = moved @ (HIFLOAT8.round(weight / scale) * scale).t() + layer.bias
    assert torch.allclose(model(x), expected, atol=1e-4, rtol=1e-4)
    assert model[0].quantized_weight.shape == (40, 12)
    assert quantization_report(model)[0].action == "converted"


def test_skip_layers_keeps_it_out() -> None:
    model = nn.Sequential(FP8Linear(40, 12, (8, 16)), nn.Linear(64, 8))
    quantize(model, config("cast", weights("hifloat8"), skip_layers=["0"]), any_dtype=True)
    convert(model)
    assert [type(module).__name__ for module in model] == ["FP8Linear", "NpuHIF8CastLinear"]
