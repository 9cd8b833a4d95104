"""The examples load, are as good as promised, and export with a dynamic batch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import workbench.zoo as zoo
from workbench.zoo.architectures import SeparableBlock
from workbench.zoo.unbalance import HARD_LAYERS

EXAMPLES = (
    "digits-resnet",
    "digits-mobilenet",
    "digits-mobilenet-hard",
    "digits-vit",
    "digits-autoencoder",
)
TOP1_FLOORS = {
    "digits-resnet": 0.97,
    "digits-mobilenet": 0.96,
    "digits-mobilenet-hard": 0.96,
    "digits-vit": 0.95,
}
PSNR_FLOOR = 28.0
SUBSET = slice(0, 600)


def run(model: nn.Module, pictures: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in pictures.split(128)])


def test_names() -> None:
    assert zoo.names() == EXAMPLES


@pytest.mark.parametrize("name", TOP1_FLOORS)
def test_top1_of_one_drawing_of_each_test_digit(name: str) -> None:
    example = zoo.load(name)
    assert example.metric == "top1"
    assert not example.model.training
    assert example.data.labels is not None
    right = (
        run(example.model, example.data.evaluation[SUBSET])
        .argmax(1)
        .eq(example.data.labels[SUBSET])
    )
    assert TOP1_FLOORS[name] <= right.double().mean() < 1.0


def test_psnr_of_the_autoencoder() -> None:
    example = zoo.load("digits-autoencoder")
    assert example.metric == "psnr"
    pictures = example.data.evaluation[SUBSET]
    error = float((run(example.model, pictures) - pictures).square().mean())
    assert 10 * math.log10(1 / error) >= PSNR_FLOOR


@pytest.mark.parametrize("name", EXAMPLES)
def test_exports_with_a_dynamic_batch(name: str) -> None:
    model = zoo.load(name).model
    program = torch.export.export(
        model, zoo.example_input(name), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    pictures = zoo.load(name).data.evaluation[:5]
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(pictures), model(pictures))


def test_each_load_is_a_fresh_model_and_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    first, second = zoo.load("digits-resnet").model, zoo.load("digits-resnet").model
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert next(second.parameters()).abs().sum() > 0


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'digits'.*digits-vit"):
        zoo.load("digits")


def test_weights_are_small_safetensors() -> None:
    folder = Path(zoo.__file__).parent / "weights"
    found = sorted(folder.iterdir())
    # The sorting decoder is no picture network of the catalogue.
    expected = sorted(f"{name}.safetensors" for name in (*EXAMPLES, "sorter"))
    assert [path.name for path in found] == expected
    assert sum(path.stat().st_size for path in found) < 3_000_000


def test_hard_is_the_same_function() -> None:
    soft, hard = zoo.load("digits-mobilenet"), zoo.load("digits-mobilenet-hard")
    pictures = soft.data.evaluation[SUBSET]
    assert torch.equal(run(soft.model, pictures), run(hard.model, pictures))


def test_hard_differs_in_the_named_layers_only() -> None:
    soft = zoo.load("digits-mobilenet").model
    hard = zoo.load("digits-mobilenet-hard").model
    changed = {
        key
        for key, value in soft.state_dict().items()
        if not torch.equal(value, hard.state_dict()[key])
    }
    expected = set()
    for layer in HARD_LAYERS:
        block = layer.removesuffix(".pointwise.conv")
        assert isinstance(soft.get_submodule(block), SeparableBlock)
        expected |= {f"{layer}.weight", f"{block}.depthwise.bn.weight"}
        expected |= {f"{block}.depthwise.bn.bias"}
    assert changed == expected
