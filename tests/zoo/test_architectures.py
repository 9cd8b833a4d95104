"""The benchmark networks are the published ones: sizes, names and output shapes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from workbench.zoo.architectures import mobilenet_v2, resnet18, resnet50, vit_small


@pytest.mark.parametrize(
    ("build", "parameters", "layers", "convolution"),
    [
        (resnet18, 11_689_512, 21, "layer2.0.downsample.0"),
        (resnet50, 25_557_032, 54, "layer4.2.conv3"),
        (mobilenet_v2, 3_504_872, 53, "features.1.conv.0.0"),
        # The published 22,050,664 less the class token and its position.
        (vit_small, 22_050_664 - 2 * 384, 74, "patch_embed"),
    ],
)
def test_published_sizes_and_names(
    build: Callable[[], nn.Module], parameters: int, layers: int, convolution: str
) -> None:
    with torch.device("meta"):
        model = build()
    assert sum(value.numel() for value in model.parameters()) == parameters
    kinds = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(kinds) == layers
    assert isinstance(model.get_submodule(convolution), nn.Conv2d)


@pytest.mark.parametrize("build", [resnet18, mobilenet_v2])
def test_a_small_picture_gives_class_scores(build: Callable[..., nn.Module]) -> None:
    model = build(num_classes=7).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
