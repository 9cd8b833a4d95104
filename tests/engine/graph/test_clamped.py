"""Which layer inputs are a clamp of another tensor: asked of the graph, compared with hooks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.engine.graph.capture import capture
from workbench.engine.graph.clamped import clamped_inputs


class Net(nn.Module):
    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.between = between
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.between(self.norm(self.first(x))))
        return y


def twice(y: Tensor) -> Tensor:
    return F.hardtanh(F.relu(y), -0.5, 0.25)


def disjoint(y: Tensor) -> Tensor:
    return y.clamp(max=-1.0).clamp(min=0.5)


@pytest.mark.parametrize(
    "between",
    [
        nn.Identity(),
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.ReLU6(inplace=True),
        nn.Sequential(nn.Dropout(), nn.Hardtanh()),
        lambda y: y.clamp(min=-0.25),
        lambda y: torch.clamp(y, 0.5, -0.5),
        twice,
        disjoint,
    ],
)
def test_a_clamped_input_is_what_its_entry_says(between: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net, x = Net(between).eval(), torch.randn(2, 2, 6, 6)
    found = clamped_inputs(capture(net, (x,)), ["first", "last"], ["norm"])
    assert found["first"].key == "input:x"
    assert found["last"].key == "first"
    with torch.no_grad():
        y = net.norm(net.first(x))
        assert torch.equal(found["last"](y), between(y.clone()))
        assert torch.equal(found["first"](x), x)


def written_later(y: Tensor) -> Tensor:
    kept = F.relu(y)
    kept.mul_(2.0)
    return kept


def written_through_a_view(y: Tensor) -> Tensor:
    kept = F.relu(y)
    kept.view(-1).mul_(2.0)
    return kept


def read_twice(y: Tensor) -> Tensor:
    return F.relu(y) + y


@pytest.mark.parametrize(
    "between",
    [nn.Sigmoid(), nn.MaxPool2d(2), written_later, written_through_a_view, read_twice],
)
def test_other_inputs_are_left_out(between: Callable[[Tensor], Tensor]) -> None:
    captured = capture(Net(between).eval(), (torch.randn(2, 2, 6, 6),))
    assert set(clamped_inputs(captured, ["first", "last"], ["norm"])) == {"first"}


def test_a_norm_that_stays_and_a_layer_that_is_not_observed_break_the_chain() -> None:
    captured = capture(Net(nn.ReLU()).eval(), (torch.randn(2, 2, 6, 6),))
    assert set(clamped_inputs(captured, ["first", "last"])) == {"first"}
    assert set(clamped_inputs(captured, ["last"], ["norm"])) == set()
