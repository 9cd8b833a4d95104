import copy
import math

import pytest
import torch
from torch import nn

from workbench.engine.analysis.module_layers import channel_profiles, weight_errors
from workbench.engine.flows.module_quantize import convert, quantize

INT4 = {"type": "int4", "symmetric": True, "strategy": "channel"}
INT8 = {
    "weights": {"type": "int8", "symmetric": True, "strategy": "channel"},
    "inputs": {"type": "int8", "symmetric": True, "strategy": "tensor"},
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def batch():
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    x[:, 5] *= 40
    return x


def calibrated(algorithm, quant_cfg):
    model = net()
    quantize(model, {"quant_cfg": quant_cfg, "algorithm": algorithm}, any_dtype=True)
    model(batch())
    return model


def test_errors_of_rounded_weights():
    model = calibrated({"minmax"}, {"weights": INT4})
    found = weight_errors(model)
    assert [(e.name, e.formats) for e in found] == [("0", "–/int4"), ("2", "–/int4")]
    for error, layer in zip(found, (net()[0], net()[2]), strict=True):
        weight = layer.weight.detach()
        high, low = weight.amax(1, keepdim=True), weight.amin(1, keepdim=True)
        scale = torch.where(high >= -low, high / 7, -low / 8)
        rounded = (weight / scale).round().clamp(-8, 7) * scale
        expected = float((rounded - weight).norm() / weight.norm())
        assert error.relative == pytest.approx(expected, rel=1e-4)
        assert error.sqnr_db == pytest.approx(-20 * math.log10(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("algorithm", "quant_cfg"),
    [
        ({"awq": {"grids_num": 20}}, {"weights": {**INT4, "type": "int8"}}),
        ({"smoothquant": {"smooth_strength": 0.5}}, INT8),
    ],
)
def test_equalisation_is_undone(algorithm, quant_cfg):
    """8 bits leave half a percent of error; a weight still multiplied would be far off."""
    for error in weight_errors(calibrated(algorithm, quant_cfg)):
        assert 1e-4 < error.relative < 0.03


def test_channels_of_a_float_model_and_their_outliers():
    model = net()
    first, second = channel_profiles(model, [batch()[:16], batch()[16:]])
    assert first.name == "0" and first.factors is None
    assert torch.allclose(torch.tensor(first.activation), batch().abs().amax(0).double())
    assert torch.allclose(
        torch.tensor(first.weight), model[0].weight.detach().abs().amax(0).double()
    )
    assert first.outliers == (5,)
    assert second.activation.shape == (16,)
    assert (first.activation_after == first.activation).all()


def test_smoothing_takes_the_outlier_away():
    model = calibrated({"smoothquant": {"smooth_strength": 0.5}}, INT8)
    profile = channel_profiles(model, [batch()])[0]
    factors = model[0].scale.reshape(-1).double()
    assert torch.allclose(torch.tensor(profile.factors), factors)
    before = profile.activation.max() / profile.activation.min()
    after = profile.activation_after.max() / profile.activation_after.min()
    assert after < before / 4
    product = profile.activation * profile.weight
    assert profile.activation_after * profile.weight_after == pytest.approx(product)


def test_wrong_order_and_bad_data():
    with pytest.raises(RuntimeError, match="between quantize"):
        weight_errors(net())
    model = net()
    quantize(model, {"quant_cfg": {"weights": INT4}, "algorithm": {"gptq"}}, any_dtype=True)
    with pytest.raises(RuntimeError, match="0 is not calibrated"):
        weight_errors(copy.deepcopy(model))
    model(batch())
    assert weight_errors(model)
    convert(model)
    with pytest.raises(RuntimeError, match="no calibrated"):
        weight_errors(model)
    with pytest.raises(RuntimeError, match="layer 0.*inf or NaN"):
        channel_profiles(net(), [batch() * math.inf])
