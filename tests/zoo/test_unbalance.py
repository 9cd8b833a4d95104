"""`digits-mobilenet-hard` keeps its promise, under a quantiser written here in a few lines.

Per-channel symmetric INT8 weights, per-tensor asymmetric INT8 activations from minimum and
maximum; batch normalisation stays apart (its factor only rescales rows of the weights).
"""

from __future__ import annotations

from collections.abc import Collection

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import workbench.zoo as zoo
from workbench.zoo import score
from workbench.zoo.architectures import ConvBN
from workbench.zoo.unbalance import HARD_LAYERS, rescale, unbalance


def quantized_weight(weight: Tensor) -> Tensor:
    rows = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
    scale = rows.reshape(-1, *[1] * (weight.dim() - 1))
    return (weight / scale).round() * scale


def quantized_input(x: Tensor, low: float, high: float) -> Tensor:
    scale = (max(high, 0.0) - min(low, 0.0)) / 255
    offset = round(-min(low, 0.0) / scale)
    return (torch.clamp(torch.round(x / scale) + offset, 0, 255) - offset) * scale


def quantize(model: nn.Module, calibration: Tensor, skip: Collection[str] = ()) -> dict[str, float]:
    """Quantise in place; returns each layer's cosine similarity to itself before."""
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear | nn.AvgPool2d) and name not in skip
    }
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def record(name: str):
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = (inputs[0], output)

        return hook

    handles = [layer.register_forward_hook(record(name)) for name, layer in layers.items()]
    with torch.no_grad():
        model(calibration)
        for handle in handles:
            handle.remove()
        similarity = {}
        for name, layer in layers.items():
            x, before = seen[name]
            low, high = float(x.min()), float(x.max())
            layer.register_forward_pre_hook(
                lambda _, inputs, low=low, high=high: (quantized_input(inputs[0], low, high),)
            )
            if not isinstance(layer, nn.AvgPool2d):
                layer.weight.copy_(quantized_weight(layer.weight))
            after = layer(x)
            similarity[name] = float(F.cosine_similarity(after.flatten(), before.flatten(), dim=0))
    return similarity


def test_all_int8_loses_and_the_hard_layers_in_float_recover() -> None:
    example = zoo.load("digits-mobilenet-hard")
    calibration = example.data.calibration[:64]
    full = score.top1(example.model, example.data)

    rolled_back = zoo.load("digits-mobilenet-hard").model
    quantize(rolled_back, calibration, skip=HARD_LAYERS)
    similarity = quantize(example.model, calibration)

    assert full - score.top1(example.model, example.data) >= 0.03
    assert abs(full - score.top1(rolled_back, example.data)) <= 0.005
    assert len(HARD_LAYERS) * 4 < len(similarity) == 29
    worst = sorted(similarity, key=lambda name: similarity[name])[: len(HARD_LAYERS)]
    assert set(worst) == set(HARD_LAYERS)
    assert max(similarity[name] for name in HARD_LAYERS) < 0.97
    assert min(value for name, value in similarity.items() if name not in worst) > 0.999


def test_the_balanced_twin_loses_nothing() -> None:
    example = zoo.load("digits-mobilenet")
    full = score.top1(example.model, example.data)
    quantize(example.model, example.data.calibration[:64])
    assert abs(full - score.top1(example.model, example.data)) <= 0.005


def test_rescale_by_hand() -> None:
    producer, consumer = ConvBN(1, 3), nn.Conv2d(3, 1, 1)
    with torch.no_grad():
        consumer.weight.copy_(torch.tensor([1.0, 1.0, 1.0]).reshape(1, 3, 1, 1))
    rescale(producer, consumer, (0, 4))
    assert producer.bn.weight.tolist() == [1.0, 16.0, 1.0]
    assert consumer.weight.flatten().tolist() == [1.0, 0.0625, 1.0]


def test_other_networks_are_refused() -> None:
    with pytest.raises(TypeError, match="TransformerBlock, not a SeparableBlock"):
        unbalance(zoo.load("digits-vit").model)
