"""AdaRound against the formulas of chapter 10 section 8.2, written out with autograd."""

import math

import pytest
import torch
import torch.nn.functional as F

from workbench.engine.algorithms.adaround import (
    REFERENCE_LEARNING_RATE,
    Samples,
    SoftRounding,
    annealed_beta,
    initial_alpha,
    reconstruction_loss,
    rounding_share,
    tune,
)
from workbench.engine.files.config import WeightParams


def h(alpha):
    return torch.clip(torch.sigmoid(alpha) * 1.2 - 0.1, 0, 1)


def soft(weight, scale, alpha, bits):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return torch.clip(torch.floor(weight / scale) + h(alpha), low, high) * scale


@pytest.fixture
def problem():
    """A 6-bit layer with weights beyond both ends of the grid, and 40 samples."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 8, generator=generator)
    scale = torch.tensor([0.05, 0.06, 0.2, 0.07, 0.11]).reshape(-1, 1)
    inputs = torch.randn(40, 8, generator=generator)
    return weight, scale, inputs, F.relu(F.linear(inputs, weight))


def forward(x, w):
    return F.relu(F.linear(x, w))


@pytest.mark.parametrize(("step", "beta"), [(2000, 20), (4000, 17.363961), (6000, 11)])
def test_beta_table(step, beta):
    settings = WeightParams(num_iteration=10000, warm_start=0.2, beta_range=(20.0, 2.0))
    assert annealed_beta(step, settings) == pytest.approx(beta, rel=1e-7)
    assert annealed_beta(9999, settings) == pytest.approx(2.0000007, abs=1e-7)
    assert annealed_beta(100, settings) == 20.0


def test_initial_alpha_gives_the_fraction():
    fraction = torch.linspace(0, 0.999, 1000)
    assert torch.allclose(rounding_share(initial_alpha(fraction)), fraction, atol=1e-6, rtol=0)
    assert float(initial_alpha(torch.tensor(0.3))) == pytest.approx(-0.693147, abs=1e-6)


def test_reconstruction_loss_of_the_table():
    assert float(reconstruction_loss(torch.tensor([[3.0, 4], [0, 0]]), torch.zeros(2, 2))) == 12.5
    output = torch.randn(2, 3, 4, 5)
    norms = torch.linalg.vector_norm(output, dim=1) ** 2
    assert torch.allclose(reconstruction_loss(output, torch.zeros_like(output)), norms.mean())


@pytest.mark.parametrize("bits", [4, 6, 7, 8])
def test_soft_weight_and_codes(problem, bits):
    weight, scale, *_ = problem
    rounding = SoftRounding(weight, scale, bits)
    assert torch.allclose(
        rounding.soft_weight(), soft(weight, scale, rounding.alpha, bits), atol=1e-6
    )
    # Before any step the decision is rounding to nearest.
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    nearest = torch.clip(torch.round(weight / scale), low, high)
    assert torch.equal(rounding.codes(), nearest)
    assert torch.equal(rounding.hard_weight(), nearest * scale)


@pytest.mark.parametrize("samples", [20, 40])
def test_steps_equal_adam_on_the_written_out_loss(problem, samples):
    weight, scale, inputs, targets = problem
    inputs, targets = inputs[:samples], targets[:samples]
    settings = WeightParams(
        num_bits=6, num_iteration=60, warm_start=0.25, reg_param=0.05, beta_range=(8.0, 2.0)
    )
    alpha = initial_alpha(weight / scale - torch.floor(weight / scale)).requires_grad_()
    adam = torch.optim.Adam([alpha], lr=REFERENCE_LEARNING_RATE)
    generator = torch.Generator().manual_seed(9)
    wanted = []
    for t in range(60):
        chosen = slice(None)
        if samples > 32:
            chosen = torch.randperm(samples, generator=generator)[:32]
        y = forward(inputs[chosen], soft(weight, scale, alpha, 6))
        loss = ((y - targets[chosen]) ** 2).sum(1).mean()
        if t >= 15:
            beta = 2 + 0.5 * 6 * (1 + math.cos(math.pi * (t - 15) / 45))
            loss = loss + 0.05 * (1 - (2 * h(alpha) - 1).abs() ** beta).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        wanted.append(float(loss.detach()))

    rounding = SoftRounding(weight, scale, 6, learning_rate=REFERENCE_LEARNING_RATE)
    got = []
    tune(
        rounding,
        [Samples(inputs, targets, forward)],
        settings,
        torch.Generator().manual_seed(9),
        where="layer fc",
        on_step=lambda step, loss: got.append(loss),
    )
    assert got == pytest.approx(wanted, rel=1e-4)
    # Adam turns even the rounding errors of a vanishing gradient into steps of its own size.
    assert torch.allclose(rounding.alpha, alpha.detach(), atol=3 * REFERENCE_LEARNING_RATE)


def test_groups_of_other_shapes_are_all_drawn_from(problem):
    weight, scale, inputs, targets = problem
    seen = set()

    def noted(x, w):
        seen.add(x.shape[1])
        return forward(x.mean(1), w)

    groups = [
        Samples(inputs[:, None].expand(-1, n, -1).contiguous(), targets, noted) for n in (1, 3)
    ]
    tune(
        SoftRounding(weight, scale, 8),
        groups,
        WeightParams(num_iteration=30),
        torch.Generator().manual_seed(0),
        where="",
        on_step=lambda step, loss: None,
    )
    assert seen == {1, 3}


def test_a_loss_that_is_not_finite_names_the_layer(problem):
    weight, scale, inputs, targets = problem
    inputs[3, 2] = float("nan")
    with pytest.raises(RuntimeError, match=r"layer head\.fc.*step 1"):
        tune(
            SoftRounding(weight, scale, 8),
            [Samples(inputs[:16], targets[:16], forward)],
            WeightParams(num_iteration=5),
            torch.Generator(),
            where="layer head.fc",
            on_step=lambda step, loss: None,
        )
