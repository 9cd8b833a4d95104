"""Which activation belongs to a layer: asked of the captured graph, compared with the module."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from workbench.engine.graph.activations import following_activation
from workbench.engine.graph.capture import capture


class Net(nn.Module):
    def __init__(self, between, after=None):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3)
        self.between = between
        self.after = after
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.first(x)
        x = self.between(y)
        if self.after is not None:
            x = self.after(x, y)
        return self.last(x)


def found(between, after=None, folded=()):
    torch.manual_seed(0)
    captured = capture(Net(between, after).eval(), (torch.randn(2, 2, 6, 6),))
    return following_activation(captured, "first", folded)


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        nn.Sigmoid(),
        nn.Tanh(),
        nn.LeakyReLU(0.2),
        nn.LeakyReLU(0.3, inplace=True),
        nn.PReLU(),
        nn.PReLU(4, init=0.1),
        nn.RReLU(0.1, 0.4),
        nn.GELU(),
        nn.GELU("tanh"),
        nn.SiLU(inplace=True),
        nn.Hardswish(),
    ],
    ids=repr,
)
def test_activations_are_found_and_computed(activation):
    got = found(activation)
    y = torch.randn(2, 4, 3, 3) * 4
    before = y.clone()
    result = got(y)
    assert torch.equal(y, before)
    assert torch.equal(result, activation.eval()(y.clone()))
    if isinstance(activation, nn.PReLU):
        assert not result.requires_grad


@pytest.mark.parametrize("function", [F.relu, F.relu6, lambda x: x.clamp_(0, 6), torch.sigmoid])
def test_functions_count_as_well(function):
    assert found(function) is not None


@pytest.mark.parametrize(
    "other",
    [
        nn.ELU(),
        nn.Hardtanh(-1, 1),
        nn.MaxPool2d(2),
        lambda x: x.clamp(0, 5),
        lambda x: x.clamp(min=0),
        lambda x: x + 1,
        lambda x: F.rrelu(x, training=True),
        lambda x: F.prelu(x, x.mean().reshape(1)),
    ],
)
def test_anything_else_is_none(other):
    assert found(other) is None


def test_a_second_reader_keeps_the_activation_apart():
    assert found(nn.ReLU(), lambda x, y: x + y) is None


def test_batch_norm_is_passed_only_when_it_is_folded():
    between = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
    assert found(between) is None
    assert found(between, folded=("between.0",)).name == "aten.relu.default"
    assert found(nn.Sequential(nn.Dropout(), nn.ReLU())) is not None
