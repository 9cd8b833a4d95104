"""The planted networks: same function, INT8 fails, and the stored smallest roll-back holds."""

from __future__ import annotations

import pytest
import torch
from planted_minimum import Subsets, smaller
from torch import nn

import workbench.zoo as zoo
from workbench.zoo.planted import PLANTED, Plant, SampleEvaluator, answers, load_planted, plant

FAST = "resnet-masked"
NAMES = [name if name == FAST else pytest.param(name, marks=pytest.mark.slow) for name in PLANTED]


@pytest.mark.parametrize("name", PLANTED)
def test_planting_changes_no_output(name: str) -> None:
    planted, base = load_planted(name), zoo.load(PLANTED[name].base)
    pictures = base.data.evaluation[:256]
    with torch.inference_mode():
        assert torch.equal(planted.example.model(pictures), base.model(pictures))


def test_the_stored_answers_are_those_of_these_networks() -> None:
    assert set(answers()) == set(PLANTED)
    for name, answer in answers().items():
        assert answer["samples"] == PLANTED[name].samples >= 4000
        assert answer["minimum"] > 0
        assert all(len(layers) == answer["minimum"] for layers in answer["smallest"])
        assert all(set(layers) <= set(answer["worst"]) for layers in answer["smallest"])


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_answer_passes_and_no_smaller_one_of_the_worst_layers(name: str) -> None:
    answer, subsets = answers()[name], Subsets(name)
    assert not subsets.passes(())
    assert subsets.loss(answer["smallest"][0]) <= PLANTED[name].max_loss
    assert len(answer["worst"]) == 8
    for candidate in smaller(answer["worst"], answer["minimum"]):
        assert not subsets.passes(candidate), candidate


def test_a_certain_verdict_is_that_of_every_sample() -> None:
    """The brute force stops early; here it is held against plain means."""
    subsets = Subsets("autoencoder", samples=300)
    for floats in ((), subsets.layers, subsets.layers[:4], subsets.layers[4:]):
        assert subsets.passes(floats) is (subsets.loss(floats) <= 0.5)


def test_scores_of_samples() -> None:
    planted = load_planted("resnet-three", samples=200)
    evaluator, model = planted.evaluator, planted.example.model
    with torch.inference_mode():
        right = model(evaluator.pictures).argmax(1) == evaluator.targets
    assert dict(evaluator.evaluate_samples(model, [7, 3])) == {
        7: float(right[7]),
        3: float(right[3]),
    }
    assert evaluator.evaluate(model) == pytest.approx(float(right.double().mean()))

    example = zoo.load("digits-autoencoder")
    decibel = SampleEvaluator(example, 0.5, samples=5)
    with torch.inference_mode():
        error = example.model(decibel.pictures) - decibel.pictures
    expected = [float(-10 * torch.log10((e.double() ** 2).mean())) for e in error]
    assert [s for _, s in decibel.evaluate_samples(example.model)] == pytest.approx(expected)
    assert [s for _, s in decibel.evaluate_samples(nn.Identity())] == [80.0] * 5


def test_rescaling_other_places_is_refused() -> None:
    model = zoo.load("digits-resnet").model
    with pytest.raises(TypeError, match="relu is ReLU: no producer"):
        plant(model, [Plant("relu", ("fc",), (0, 1))])
    with pytest.raises(TypeError, match="avgpool is AdaptiveAvgPool2d: no consumer"):
        plant(model, [Plant("bn1", ("avgpool",), (0, 1))])
