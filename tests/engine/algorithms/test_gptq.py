import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.engine.algorithms.gptq import GPTQOptions, solve_gptq
from workbench.engine.algorithms.tokens import InputGram
from workbench.engine.algorithms.weight_formats import WeightFormat
from workbench.engine.errors import Cancelled
from workbench.engine.events import CancelToken

INT4 = WeightFormat("int4")


def correlated(tokens, features, seed, weakest=-2):
    """An anisotropic Gaussian: a few directions carry most of the input."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator)
    strength = torch.logspace(0, weakest, features)
    return torch.randn(tokens, features, generator=generator) @ (strength[:, None] * mixing)


def hessian_of(x):
    return 2 * x.T @ x


def objective(delta, hessian):
    return float(((delta.double() @ hessian.double()) * delta.double()).sum())


def damped(hessian, share=0.01):
    return hessian.double() + share * hessian.diagonal().double().mean() * torch.eye(len(hessian))


def column_by_column(weight, hessian, scale, order):
    """Round a column, then move the free ones to their least-squares optimum; start from scratch
    at every step."""
    weight, scale = weight.double(), scale.double()
    delta = torch.zeros_like(weight)
    fixed = []
    for column in order:
        value = weight[:, column] + delta[:, column]
        level = (value / scale).round().clamp(-8, 7) * scale
        fixed.append(column)
        free = [c for c in order if c not in fixed]
        delta[:, column] = level - weight[:, column]
        if free:
            among = hessian[free][:, free]
            pull = hessian[free][:, fixed] @ delta[:, fixed].T
            delta[:, free] = -torch.linalg.solve(among, pull).T
    return (weight + delta).float()


@pytest.mark.parametrize("activation_order", [True, False])
def test_equals_the_textbook_on_a_small_matrix(activation_order):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 12, generator=generator)
    hessian = hessian_of(correlated(40, 12, 3))
    result = solve_gptq(
        weight, hessian, INT4, GPTQOptions(activation_order=activation_order, block_size=5)
    )
    order = list(range(12))
    if activation_order:
        order.sort(key=lambda j: -float(hessian[j, j]))
    scale = result.factors.scale[:, 0]
    expected = column_by_column(weight, damped(hessian), scale, order)
    torch.testing.assert_close(result.weight, expected, rtol=1e-5, atol=1e-5)


def test_close_to_the_best_of_all_roundings():
    codes = torch.tensor(list(itertools.product(range(-8, 8), repeat=4))).float()
    ours = nearest = best = 0.0
    for seed in range(12):
        weight = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed))
        hessian = hessian_of(correlated(40, 4, seed, weakest=-1))
        result = solve_gptq(weight, hessian, INT4)
        delta = codes * float(result.factors.scale) - weight
        best += float(((delta @ hessian) * delta).sum(1).min())
        ours += objective(result.weight - weight, hessian)
        nearest += objective(INT4.fake_quantize(weight) - weight, hessian)
    # Nearest rounding is 2.1 times the optimum here.
    assert best <= ours <= 1.6 * best
    assert ours <= 0.8 * nearest


def test_orthonormal_inputs_give_plain_rounding():
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    for number_format in (INT4, WeightFormat("int4", False, "group", 8)):
        result = solve_gptq(weight, torch.eye(32), number_format)
        torch.testing.assert_close(result.weight, number_format.fake_quantize(weight))


def test_halves_the_output_error_on_correlated_inputs():
    x = correlated(512, 128, 1)
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    gram = InputGram(128)
    gram.update(x)
    result = solve_gptq(weight, gram.hessian, INT4)
    ours = ((result.weight - weight) @ x.T).square().mean()
    nearest = ((INT4.fake_quantize(weight) - weight) @ x.T).square().mean()
    assert ours <= 0.5 * nearest


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    kind=st.sampled_from(
        [
            WeightFormat("int4", False, "group", 8),
            WeightFormat("int8", True, "tensor"),
            WeightFormat("float8_e4m3fn"),
            WeightFormat("hifloat8"),
            WeightFormat("float4_e2m1", True, "group", 16),
        ]
    ),
    block_size=st.integers(1, 40),
)
def test_every_weight_lies_on_its_grid(seed, kind, block_size):
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(seed))
    hessian = hessian_of(correlated(64, 32, seed))
    result = solve_gptq(weight, hessian, kind, GPTQOptions(block_size=block_size))
    again = kind.fake_quantize(result.weight, result.factors)
    torch.testing.assert_close(again, result.weight, rtol=1e-6, atol=1e-7)
    other = solve_gptq(weight, hessian, kind, GPTQOptions(block_size=32))
    # A tie may fall to the other side; all but a few values must agree.
    assert ((result.weight - other.weight).abs() > 1e-6).float().mean() < 0.1


def test_a_column_without_input_becomes_zero_and_does_not_stretch_the_grid():
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    weight[:, 3] = 100.0
    x = correlated(64, 16, 0)
    x[:, 3] = 0.0
    result = solve_gptq(weight, hessian_of(x), INT4)
    assert result.dead_columns == 1
    assert not result.weight[:, 3].any()
    assert float(result.factors.scale.max()) < 1.0


def test_microscaling_blocks_keep_their_exponents():
    mx = WeightFormat("mxfp4_e2m1", True, "group", 32)
    x = correlated(256, 96, 2)
    weight = torch.randn(16, 96, generator=torch.Generator().manual_seed(2))
    result = solve_gptq(weight, hessian_of(x), mx)
    # What is on a grid with shared exponents is unchanged by rounding blocks again.
    torch.testing.assert_close(mx.fake_quantize(result.weight), result.weight, rtol=0, atol=0)
    ours = objective(result.weight - weight, hessian_of(x))
    assert ours <= 0.5 * objective(mx.fake_quantize(weight) - weight, hessian_of(x))


def test_damping_grows_until_the_hessian_is_positive():
    hessian = torch.eye(8) - 0.2 * torch.ones(8, 8)  # smallest eigenvalue 1 - 1.6
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert solve_gptq(weight, hessian, INT4).damping == 1.0
    with pytest.raises(RuntimeError, match="damping 1"):
        solve_gptq(weight, torch.eye(8) - 0.9 * torch.ones(8, 8), INT4)


def test_reads_only_what_it_is_given():
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    hessian = hessian_of(correlated(64, 16, 0))
    copies = weight.clone(), hessian.clone()
    result = solve_gptq(weight, hessian, INT4)
    assert torch.equal(weight, copies[0]) and torch.equal(hessian, copies[1])
    assert result.weight.dtype == torch.float32


def test_bad_input():
    weight, hessian = torch.randn(4, 8), torch.eye(8)
    with pytest.raises(ValueError, match=r"\[8, 8\]"):
        solve_gptq(weight, torch.eye(7), INT4)
    with pytest.raises(RuntimeError, match="inf or NaN"):
        solve_gptq(weight.index_fill(1, torch.tensor([2]), torch.nan), hessian, INT4)
    with pytest.raises(RuntimeError, match="inf or NaN"):
        solve_gptq(weight, hessian * torch.inf, INT4)
    with pytest.raises(ValueError, match="damping"):
        GPTQOptions(damping=0.0)
    with pytest.raises(ValueError, match="block_size"):
        GPTQOptions(block_size=0)
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        solve_gptq(weight, hessian, INT4, cancel=cancel)


def test_the_hessian_is_kept_unless_its_memory_may_be_used():
    weight = torch.randn(6, 600, generator=torch.Generator().manual_seed(0))
    hessian = hessian_of(correlated(700, 600, 2))
    copy = hessian.clone()
    kept = solve_gptq(weight, hessian, INT4)
    assert torch.equal(hessian, copy)
    used = solve_gptq(weight, hessian, INT4, overwrite_hessian=True)
    assert torch.equal(used.weight, kept.weight)
    # The upper factor of the inverse lies there now.
    assert not torch.equal(hessian, copy)
