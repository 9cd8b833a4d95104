import pytest
import torch

from workbench.engine.algorithms.smoothquant import smoothed_range, smoothing_factors
from workbench.engine.algorithms.tokens import ChannelRanges


def layer(seed=0, outlier=50.0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(24, 32, generator=generator) * 0.1
    x = torch.randn(200, 32, generator=generator)
    x[:, 5] *= outlier
    return weight, x


def test_the_product_stays_the_same():
    weight, x = layer()
    f = smoothing_factors(x.abs().amax(0), weight, 0.5)
    torch.testing.assert_close((x / f) @ (weight * f).T, x @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strength", [0.25, 0.5, 0.9])
def test_factors_follow_the_formula(strength):
    weight, x = layer()
    f = smoothing_factors(x.abs().amax(0), weight, strength)
    for j in (0, 5, 31):
        a, w = float(x[:, j].abs().max()), float(weight[:, j].abs().max())
        assert float(f[j]) == pytest.approx(a**strength / w ** (1 - strength), rel=1e-5)


def test_strength_near_zero_gives_the_inverse_of_the_weight():
    weight, x = layer()
    f = smoothing_factors(x.abs().amax(0), weight, 1e-9)
    torch.testing.assert_close(f, 1 / weight.abs().amax(0), rtol=1e-5, atol=0)


def test_channels_without_data_or_weight_are_left_alone():
    weight, x = layer()
    weight[:, 2] = 0.0
    x[:, 7] = 0.0
    f = smoothing_factors(x.abs().amax(0), weight, 0.5)
    assert float(f[2]) == 1.0 and float(f[7]) == 1.0


def test_factors_below_the_resolution_of_bfloat16_survive():
    weight = torch.full((2, 3), 100.0, dtype=torch.bfloat16)
    f = smoothing_factors(torch.full((3,), 1e-4), weight, 0.5)
    torch.testing.assert_close(f, torch.full((3,), 1e-3))


def test_smoothed_range_is_that_of_the_divided_input():
    weight, x = layer()
    ranges = ChannelRanges(32)
    ranges.update(x)
    f = smoothing_factors(ranges.magnitude, weight, 0.5)
    low, high = smoothed_range(ranges.low, ranges.high, f)
    divided = x / f
    assert low == pytest.approx(float(divided.min())) and high == pytest.approx(
        float(divided.max())
    )


def test_an_outlier_channel_no_longer_spoils_the_others():
    weight, x = layer()
    expected = x @ weight.T

    def int8(values, axis=None):
        largest = values.abs().amax() if axis is None else values.abs().amax(axis, keepdim=True)
        return (values / largest * 127).round() * largest / 127

    f = smoothing_factors(x.abs().amax(0), weight, 0.5)
    plain = (int8(x) @ int8(weight, 1).T - expected).square().mean()
    smooth = (int8(x / f) @ int8(weight * f, 1).T - expected).square().mean()
    assert smooth <= 0.1 * plain


def test_weights_and_activations_must_be_finite():
    weight, x = layer()
    with pytest.raises(RuntimeError, match="inf or NaN"):
        smoothing_factors(torch.full((32,), torch.inf), weight, 0.5)
    weight[0, 0] = torch.nan
    with pytest.raises(RuntimeError, match="inf or NaN"):
        smoothing_factors(x.abs().amax(0), weight, 0.5)
