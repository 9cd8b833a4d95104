"""Channels are evened out before training, and the float model computes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from qat_models import Files, batch, evaluate
from torch import Tensor, nn

from workbench.engine import create_quant_retrain_config, create_quant_retrain_model
from workbench.engine.algorithms.equalization import channel_exponents
from workbench.engine.flows.qat_save import plain_model


class Block(nn.Module):
    """Conv, BN, ReLU, pool, depthwise, BN, ReLU, pointwise; the second half has another reader."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.depthwise, self.bn2 = nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)
        self.pointwise, self.bn3 = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)
        self.left, self.right = nn.Conv2d(6, 3, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.bn1(self.stem(x))), 2, 1)
        x = torch.relu(self.bn2(self.depthwise(x)))
        x = torch.relu(self.bn3(self.pointwise(x)))
        out: Tensor = self.left(x) + self.right(x)
        return out


def unbalanced() -> Block:
    """Channels far apart before each convolution that can even them out, and before two more."""
    torch.manual_seed(2)
    model = Block()
    for norm in (model.bn1, model.bn2, model.bn3):
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.uniform_(-0.5, 0.5)
        norm.weight.data[::2] *= 64
        norm.bias.data[::2] *= 64
    model.pointwise.weight.data[:, ::2] /= 64
    return model.eval()


def create(folder: Path, model: nn.Module, **options: Any) -> nn.Module:
    files = Files(folder)
    if not Path(files.config).exists():
        create_quant_retrain_config(
            files.config, model, batch(0), compat=options.get("compat", False)
        )
    return create_quant_retrain_model(files.config, model, files.record, batch(0), **options)


def spread(values: Tensor) -> float:
    return (values.abs().max() / values.abs().min()).item()


def test_the_float_model_is_the_same_to_the_bit(tmp_path: Path) -> None:
    float_model = unbalanced()
    made = create(tmp_path, float_model)
    plain = plain_model(made)[0]
    for norm in (plain.bn1, plain.bn2):
        assert spread(norm.weight) < 12
    assert spread(plain.bn3.weight) > 30  # two layers read it
    x = batch(3)
    assert torch.equal(evaluate(plain, x), evaluate(float_model, x))


def test_quantising_costs_far_less(tmp_path: Path) -> None:
    float_model, x = unbalanced(), batch(3, 16)
    expected = evaluate(float_model, x)
    errors = {}
    for even in (True, False):
        made = create(tmp_path, float_model, equalize=even)
        errors[even] = float((evaluate(made, x) - expected).pow(2).mean())
    assert errors[True] < 0.5 * errors[False]


@pytest.mark.parametrize("why", ["compat", "clips", "asked"])
def test_what_leaves_the_channels_as_they_are(tmp_path: Path, why: str) -> None:
    float_model = unbalanced()
    options: dict[str, Any] = {"equalize": False} if why == "asked" else {}
    if why == "compat":
        options["compat"] = True
    if why == "clips":
        files = Files(tmp_path)
        create_quant_retrain_config(files.config, float_model, batch(0))
        data = json.loads(Path(files.config).read_text())
        for entry in list(data.values())[2:]:
            entry["retrain_data_config"] |= {"clip_max": 9.0, "clip_min": -9.0}
        Path(files.config).write_text(json.dumps(data))
    plain = plain_model(create(tmp_path, float_model, **options))[0]
    state = float_model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())


def test_even_channels_and_dead_ones_are_left_alone() -> None:
    weight = torch.ones(3, 4, 1, 1)
    even = channel_exponents(torch.ones(4), torch.zeros(4), weight, depthwise=False)
    assert not even.any()
    gamma, beta = torch.tensor([1.0, 0.0, 64.0, 1.0]), torch.tensor([0.0, -1.0, 0.0, 0.0])
    # Reach 3, none, 192, 3: the third is 64 times the median; its weight is as large as any.
    exponents = channel_exponents(gamma, beta, weight, depthwise=False)
    assert exponents.tolist() == [0.0, 0.0, 3.0, 0.0]
    assert channel_exponents(gamma, beta, weight, depthwise=True).tolist() == [0.0, 0.0, 6.0, 0.0]
