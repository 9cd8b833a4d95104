"""Damping, activation order and block size of gptq in a configuration."""

import pytest
import torch
from torch import nn

from workbench.engine import quantize
from workbench.engine.algorithms.gptq import GPTQOptions, solve_gptq
from workbench.engine.algorithms.weight_formats import WeightFormat


def config(options):
    weights = {"type": "int4", "symmetric": True, "strategy": "channel"}
    return {"quant_cfg": {"weights": weights}, "algorithm": {"gptq": options}}


@pytest.mark.parametrize(
    "options",
    [None, {}, {"damping": 0.5}, {"activation_order": False, "block_size": 3}],
)
def test_options_reach_the_solver(options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8))
    weight = model[0].weight.detach().clone()
    x = torch.randn(1, 40, 16) @ torch.randn(16, 16)
    quantize(model, config(options))
    model(x)
    hessian = 2 * x[0].T @ x[0]
    expected = solve_gptq(weight, hessian, WeightFormat("int4"), GPTQOptions(**(options or {})))
    torch.testing.assert_close(model[0].fake_weight(), expected.weight)
    default = solve_gptq(weight, hessian, WeightFormat("int4"))
    same = torch.equal(expected.weight, default.weight)
    assert same == (not options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"damping": 0.0}, r"damping is 0.0; allowed: a number in \(0, 1\]"),
        ({"damping": 2}, "damping"),
        ({"activation_order": 1}, "activation_order"),
        ({"block_size": 0}, "block_size"),
        ({"order": True}, "unknown key"),
        (3, "an object"),
    ],
)
def test_wrong_options_are_refused(options, says):
    with pytest.raises((ValueError, TypeError), match=says):
        quantize(nn.Sequential(nn.Linear(16, 8)), config(options))
