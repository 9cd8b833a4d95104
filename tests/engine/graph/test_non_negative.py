"""Where the lower bound of an activation is 0 by what computed it (chapter 30 section 4.3)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.engine.graph.capture import capture
from workbench.engine.graph.non_negative import non_negative_input

# name -> (what comes before the convolution, non-negative, non-negative with compat).
CASES: dict[str, tuple[Callable[[Tensor], Tensor], bool, bool]] = {
    "relu": (F.relu, True, True),
    "relu_max_pool": (lambda x: F.max_pool2d(F.relu(x), 2), True, False),
    "relu6": (F.relu6, True, False),
    "graph_input": (lambda x: x, False, False),
    "sigmoid": (torch.sigmoid, True, False),
    "clamp_from_0": (lambda x: x.clamp(0, 3), True, False),
    "clamp_from_below": (lambda x: x.clamp(-1, 3), False, False),
    "hardtanh": (F.hardtanh, False, False),
    "avg_pool_reshape": (lambda x: F.avg_pool2d(F.relu(x), 2).reshape(-1, 4, 2, 2), True, False),
    "dropout": (lambda x: F.dropout(F.relu(x), training=False), True, False),
    "sum": (lambda x: F.relu(x) + torch.sigmoid(x), True, False),
    "sum_with_any": (lambda x: F.relu(x) + x, False, False),
    "difference": (lambda x: torch.add(F.relu(x), F.relu(x), alpha=-1), False, False),
    "sum_with_negative": (lambda x: F.relu(x) - 1.0, False, False),
    "negative_constant": (lambda x: F.relu(x) + (-1.0), False, False),
    "concatenation": (lambda x: torch.cat([F.relu(x), F.relu6(x)], 1)[:, :4], True, False),
    "tanh": (torch.tanh, False, False),
    "hardswish": (F.hardswish, False, False),
    "upsampled": (lambda x: F.interpolate(F.relu(x), scale_factor=2), True, False),
    "bicubic": (
        lambda x: F.interpolate(F.relu(x), scale_factor=2, mode="bicubic"),
        False,
        False,
    ),
}


class Before(nn.Module):
    """Every case before a convolution of its own."""

    def __init__(self) -> None:
        super().__init__()
        for name in CASES:
            setattr(self, name, nn.Conv2d(4, 1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.get_submodule(name)(before(x)) for name, (before, *_) in CASES.items()]


@pytest.fixture(scope="module")
def captured():
    return capture(Before(), torch.randn(2, 4, 4, 4), dynamic=False)


@pytest.mark.parametrize("name", CASES)
def test_the_sign_of_a_layers_input(captured, name: str) -> None:
    _, expected, with_compat = CASES[name]
    assert non_negative_input(captured, name) is expected
    assert non_negative_input(captured, name, compat=True) is with_compat


@pytest.mark.parametrize("name", [name for name, (_, positive, _) in CASES.items() if positive])
def test_what_counts_as_non_negative_is(name: str) -> None:
    x = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * 3
    assert CASES[name][0](x).min() >= 0
