"""The DMQ balancer against chapter 10's table, its formula in plain Python, and its invariant."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.engine.algorithms.dmq import (
    activation_magnitudes,
    balance_factors,
    balance_weight,
    inverse_balance,
    weight_magnitudes,
)
from workbench.engine.errors import WorkbenchError

EPS = 2.0**-23

A_ROWS = torch.tensor([[1.0, -4], [0.5, 0.25], [0, 0], [3, 1], [0, 0]])
W_ROWS = torch.tensor([[0.5, -0.1], [0.3, 1], [0.3, 0.2], [0, 0], [0, 0]])


@pytest.mark.parametrize(
    ("strength", "expected"),
    [
        (0.5, [2.828427, 0.7071068, 4.714045, 2.121321, 1]),
        (0.2, [2.297397, 0.8705506, 3.828995, 1.723048, 1]),
        (0.8, [3.482202, 0.5743492, 5.803670, 2.611652, 1]),
    ],
)
def test_the_table_of_chapter_10(strength, expected):
    activation = activation_magnitudes(A_ROWS.T, -1)
    # A Linear weight is (Cout, Cin): the table's rows are input channels.
    weight = weight_magnitudes(W_ROWS.T, transposed=False, groups=1)
    factors = balance_factors(activation, weight, strength)
    assert factors.dtype == torch.float32
    assert factors.tolist() == pytest.approx(expected, rel=1e-6)


def by_the_formula(a, v, strength):
    """Section 10 in plain Python floats."""
    s = [0.0 if y < EPS else x**strength / y ** (1 - strength) for x, y in zip(a, v, strict=True)]
    used = [j for j in range(len(a)) if s[j] >= EPS]
    xo = max(a[j] / s[j] for j in used)
    wo = max(v[j] * s[j] for j in used)
    result = []
    for j in range(len(a)):
        if a[j] < EPS and v[j] < EPS:
            result.append(1.0)
        elif a[j] < EPS:
            result.append(wo / v[j])
        elif v[j] < EPS:
            result.append(a[j] / xo)
        else:
            result.append(s[j])
    return result


magnitude = st.one_of(st.just(0.0), st.floats(2**-5, 2**5, width=32))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(magnitude, magnitude), min_size=1, max_size=12),
    st.floats(0.2, 0.8),
)
def test_any_magnitudes_follow_the_formula(pairs, strength):
    a, v = (list(side) for side in zip(*pairs, strict=True))
    factors = balance_factors(torch.tensor(a), torch.tensor(v), strength).tolist()
    if not any(x > 0 and y > 0 for x, y in pairs):
        assert factors == [1.0] * len(pairs)
    else:
        assert factors == pytest.approx(by_the_formula(a, v, strength), rel=1e-6)


def test_all_zero_input_or_weight_gives_ones():
    some, none = torch.tensor([1.0, 2.0]), torch.zeros(2)
    assert balance_factors(none, some, 0.5).tolist() == [1, 1]
    assert balance_factors(some, none, 0.5).tolist() == [1, 1]
    assert balance_factors(none, none, 0.5).tolist() == [1, 1]


def test_disjoint_channels_give_ones():
    assert balance_factors(torch.tensor([1.0, 0]), torch.tensor([0, 2.0]), 0.5).tolist() == [1, 1]


def test_channel_counts_that_disagree():
    with pytest.raises(ValueError, match=r"2 channels.* 3"):
        balance_factors(torch.ones(2), torch.ones(3), 0.5)


@pytest.mark.parametrize(("a", "v"), [(1e20, 1e-20), (1e-6, 1e30)])
def test_factors_out_of_range_name_the_channel(a, v):
    # A second channel keeps the tiny weight from counting as zero everywhere.
    a, v = torch.tensor([1.0, a]), torch.tensor([1.0, max(v, 2e-7)])
    assert math.isfinite(float(a[1]))
    with pytest.raises(RuntimeError, match="channel 1") as caught:
        balance_factors(a, v, 0.5)
    assert isinstance(caught.value, WorkbenchError)


def test_integers_and_infinities_are_refused():
    with pytest.raises(TypeError, match="int64"):
        activation_magnitudes(torch.ones(2, 3, dtype=torch.int64), 1)
    with pytest.raises(RuntimeError, match="inf or NaN"):
        activation_magnitudes(torch.tensor([[1.0, math.nan]]), 1)
    with pytest.raises(RuntimeError, match="inf or NaN"):
        balance_factors(torch.tensor([1.0]), torch.tensor([math.inf]), 0.5)


LAYERS = [
    ("Conv1d", F.conv1d, (8, 6, 3), (2, 6, 9), 1),
    ("Conv2d", F.conv2d, (8, 6, 3, 3), (2, 6, 7, 7), 1),
    ("Conv2d", F.conv2d, (8, 3, 3, 3), (2, 6, 7, 7), 2),
    ("Conv2d", F.conv2d, (6, 1, 3, 3), (2, 6, 7, 7), 6),
    ("Conv3d", F.conv3d, (4, 6, 2, 2, 2), (2, 6, 4, 4, 4), 1),
    ("ConvTranspose1d", F.conv_transpose1d, (6, 4, 3), (2, 6, 9), 1),
    ("ConvTranspose2d", F.conv_transpose2d, (6, 4, 3, 3), (2, 6, 7, 7), 1),
    ("ConvTranspose2d", F.conv_transpose2d, (6, 2, 3, 3), (2, 6, 7, 7), 3),
]


@pytest.mark.parametrize(("kind", "op", "weight_shape", "input_shape", "groups"), LAYERS)
def test_channels_are_the_right_ones(kind, op, weight_shape, input_shape, groups):
    """Balancing changes nothing, and a channel's weight is what its input alone meets."""
    torch.manual_seed(0)
    weight, x = torch.randn(weight_shape), torch.randn(input_shape)
    x[:, 2] *= 50
    transposed = "Transpose" in kind
    factors = balance_factors(
        activation_magnitudes(x, 1),
        weight_magnitudes(weight, transposed=transposed, groups=groups),
        0.6,
    )
    balanced = balance_weight(weight, factors, transposed=transposed, groups=groups)
    y = op(x * inverse_balance(factors, kind, x.dim()), balanced, groups=groups)
    torch.testing.assert_close(y, op(x, weight, groups=groups), rtol=1e-5, atol=1e-4)

    unit = torch.zeros_like(x)
    middle = tuple(n // 2 for n in x.shape[2:])
    for channel in range(6):
        unit.zero_()
        unit[(0, channel, *middle)] = 1
        met = op(unit, weight, groups=groups).abs().max()
        found = weight_magnitudes(weight, transposed=transposed, groups=groups)[channel]
        assert float(met) == pytest.approx(float(found), rel=1e-5)


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_linear_channels_are_last(rank):
    torch.manual_seed(0)
    weight, x = torch.randn(5, 4), torch.randn(3, 2, 6, 4)[(0,) * (4 - rank)]
    factors = torch.tensor([0.5, 2, 4, 1])
    balanced = balance_weight(weight, factors, transposed=False, groups=1)
    y = F.linear(x * inverse_balance(factors, "Linear", x.dim()), balanced)
    torch.testing.assert_close(y, F.linear(x, weight), rtol=1e-6, atol=1e-6)
    assert activation_magnitudes(x, -1).tolist() == x.abs().reshape(-1, 4).amax(0).tolist()
