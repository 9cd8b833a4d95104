"""Every format on every layer alone, against what the formats' definitions give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from format_models import OUTLIER, make_linear_data, make_linear_net
from torch import nn

from workbench.engine import quantize
from workbench.engine.analysis.module_formats import (
    WAYS,
    WEIGHTS,
    LayerFormats,
    compare_formats,
)
from workbench.engine.errors import WrongState
from workbench.engine.flows.module_quantize import quantization_report


@pytest.fixture(scope="module")
def found() -> dict[str, LayerFormats]:
    batches = [x for x, _ in make_linear_data()]
    return {layer.name: layer for layer in compare_formats(make_linear_net(), batches)}


def relative(rounded: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(rounded - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize(("name", "bits", "group"), [("int8", 8, 64), ("int4 g32", 4, 32)])
def test_errors_of_integers(
    found: dict[str, LayerFormats], name: str, bits: int, group: int
) -> None:
    weight = make_linear_net().get_submodule("block.fc").weight.detach().double().numpy()
    rows = weight.reshape(-1, group)
    high, low = np.maximum(rows.max(1), 0), np.minimum(rows.min(1), 0)
    top = 2 ** (bits - 1)
    scale = np.where(high >= -low, high / (top - 1), -low / top)[:, None]
    rounded = np.clip(np.rint(rows / scale), -top, top - 1) * scale
    expected = relative(rounded.reshape(weight.shape), weight)
    assert found["block.fc"].errors[name] == pytest.approx(expected, rel=1e-4)


def test_which_layers_take_a_format(found: dict[str, LayerFormats]) -> None:
    assert list(found) == ["conv", "fc", "block.fc", "lm_head"]
    conv = {key for key, value in found["conv"].errors.items() if math.isfinite(value)}
    assert conv == {"float8", "hifloat8"}, "those of ofmr, which takes convolutions"
    assert math.isnan(found["fc"].errors["int4 g64"]), "64 inputs are one group"
    assert math.isfinite(found["fc"].errors["int4 g32"])
    assert math.isnan(found["conv"].minmax_db)
    assert found["conv"].profile is None


def test_outliers_and_what_smoothing_gains(found: dict[str, LayerFormats]) -> None:
    fc = found["fc"]
    assert fc.profile is not None
    x = torch.cat([x for x, _ in make_linear_data()])
    inputs = make_linear_net().get_submodule("conv")(x).flatten(1).abs().amax(0)
    assert fc.profile.activation == pytest.approx(inputs.detach().double().numpy(), rel=1e-6)
    assert OUTLIER in fc.profile.outliers
    assert fc.smoothquant_db > fc.minmax_db + 6


def test_sqnr_of_int8_is_that_of_the_definition(found: dict[str, LayerFormats]) -> None:
    net = make_linear_net()
    seen: list[np.ndarray] = []
    hook = net.get_submodule("lm_head").register_forward_pre_hook(
        lambda _m, args: seen.append(args[0].double().numpy())
    )
    with torch.no_grad():
        for x, _ in make_linear_data():
            net(x)
    hook.remove()
    x = np.concatenate(seen)
    weight = net.get_submodule("lm_head").weight.detach().double().numpy()
    bias = net.get_submodule("lm_head").bias.detach().double().numpy()

    def grid(values: np.ndarray, high: np.ndarray, low: np.ndarray) -> np.ndarray:
        scale = np.where(high >= -low, high / 127, -low / 128)
        return np.clip(np.rint(values / scale), -128, 127) * scale

    rounded = (
        grid(x, x.max(), x.min())
        @ grid(weight, weight.max(1, keepdims=True), weight.min(1, keepdims=True)).T
    )
    exact = x @ weight.T + bias
    noise = exact - (rounded + bias)
    expected = 10 * math.log10((exact**2).sum() / (noise**2).sum())
    assert found["lm_head"].minmax_db == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("name", sorted(WAYS))
def test_every_way_is_one_that_quantize_takes(name: str) -> None:
    way = WAYS[name]
    net = make_linear_net()
    sections = {"weights": dict(way.weights)} | ({"inputs": dict(way.inputs)} if way.inputs else {})
    quantize(net, {"quant_cfg": sections, "algorithm": way.options}, any_dtype=True)
    taken = {entry.name for entry in quantization_report(net) if entry.action != "float"}
    small = way.weights.get("group_size", 0) < 64
    assert ("fc" in taken) == small
    assert ("conv" in taken) == way.takes("Conv2d")
    assert way.takes("Linear")
    assert way.weights in WEIGHTS.values()


def test_bad_input() -> None:
    with pytest.raises(WrongState, match="no Linear or Conv2d layer"):
        compare_formats(nn.Sequential(nn.ReLU()), [])
    net = make_linear_net()
    with torch.no_grad():
        net.get_submodule("block.fc").weight[0, 0] = math.nan
    with pytest.raises(WrongState, match=r"block\.fc"):
        compare_formats(net, [])
    with pytest.raises(WrongState, match="layer fc"):
        compare_formats(make_linear_net(), [torch.full((2, 1, 4, 4), math.inf)])


def test_without_batches_weights_alone_are_measured() -> None:
    net = make_linear_net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    layer = compare_formats(net, [], formats=("int8",))[1]
    assert set(layer.errors) == {"int8"}
    assert math.isnan(layer.smoothquant_db)
    assert layer.profile is None
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())
