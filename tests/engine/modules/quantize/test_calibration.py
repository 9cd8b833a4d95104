"""Calibration modules against the chapter's formulas, written out."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from small_layers import calibrating, config, inputs, tokens, weights
from torch import nn
from torch.nn import functional

from workbench.engine import convert, quantize
from workbench.engine.algorithms import weight_formats
from workbench.engine.algorithms.column_scaled import ColumnScaled
from workbench.engine.numerics.formats import ELEMENT_FORMATS
from workbench.engine.numerics.hifloat8 import HIFLOAT8

pytestmark = pytest.mark.filterwarnings("error::UserWarning")
SMOOTH = {"smoothquant": {"smooth_strength": 0.5}}
AWQ = {"awq": {"grids_num": 20}}


@pytest.fixture(autouse=True)
def _no_gradients_and_one_seed() -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def linear(features: int = 64, outputs: int = 16, bias: bool = True) -> nn.Linear:
    return nn.Linear(features, outputs, bias=bias)


def error(model: nn.Module, layer: nn.Linear, x: torch.Tensor) -> float:
    return float((model(x) - layer(x)).square().mean())


def test_minmax_weights_lose_half_a_step_at_most_and_use_their_own_side() -> None:
    layer = linear()
    layer.weight[3] = -layer.weight[3].abs()
    module = calibrating(layer, config("minmax", weights()))[0]
    error = (module.fake_weight() - layer.weight).abs() / module.scale_w
    clipped = layer.weight / module.scale_w > 127.5
    # Where the negative side is the larger, the positive one may reach 128.
    assert (error <= torch.where(clipped, 1.0, 0.5) + 1e-4).all()
    assert not (
        clipped & (layer.weight.amax(1, keepdim=True) >= -layer.weight.amin(1, keepdim=True))
    ).any()
    assert module.scale_w.shape == (16, 1)
    assert float(module.scale_w[3]) == pytest.approx(float(layer.weight[3].abs().max()) / 128)
    assert float(module.scale_w[0]) == pytest.approx(
        float(layer.weight[0].max()) / 127
        if layer.weight[0].max() >= -layer.weight[0].min()
        else float(-layer.weight[0].min()) / 128
    )


@pytest.mark.parametrize("symmetric", [True, False])
def test_minmax_quantises_inputs_after_its_calls(symmetric: bool) -> None:
    layer = linear()
    given = config("minmax", weights(), inputs() | {"symmetric": symmetric}, batch_num=2)
    model = calibrating(layer, given)
    first, second = tokens(3, 5, 64) + 1, tokens(2, 64, seed=1) * 3
    assert torch.equal(model(first), layer(first))
    assert torch.equal(model(second), layer(second))
    high = max(float(first.max()), float(second.max()))
    low = min(float(first.min()), float(second.min()))
    if symmetric:
        scale, offset = (high / 127 if high >= -low else -low / 128), 0
    else:
        scale = (max(high, 0) - min(low, 0)) / 255
        offset = round(-128 - min(low, 0) / scale)
    module = model[0]
    assert module.scale_d.shape == (1,)
    assert float(module.scale_d) == pytest.approx(scale, rel=1e-6)
    assert (0 if module.offset_d is None else int(module.offset_d)) == offset
    x = tokens(7, 64, seed=2)
    moved = ((x / module.scale_d + offset).round().clamp(-128, 127) - offset) * module.scale_d
    row = module.scale_w
    rounded = (layer.weight / row).round().clamp(-128, 127) * row
    step = (module.scale_d * row).flatten()
    bias = (layer.bias / step).round() * step
    assert torch.allclose(model(x), functional.linear(moved, rounded, bias), atol=1e-5)


def test_tokens_are_scaled_at_run_time_in_both_phases() -> None:
    layer = linear()
    model = calibrating(layer, config("minmax", weights(), inputs(strategy="token")))
    model(tokens(2, 9, 64))
    x = tokens(3, 4, 64, seed=1)
    x[1, 2] = 0
    scale = x.abs().amax(-1, keepdim=True) / 127
    moved = (x / scale).round().nan_to_num(0) * scale
    expected = functional.linear(moved, model[0].fake_weight(), layer.bias)
    assert torch.allclose(model(x), expected, atol=1e-5)
    convert(model)
    assert torch.allclose(model(x), expected, atol=1e-5)
    # Another length and batch, and a row of zeros that gives the bias.
    assert model(tokens(64, seed=3).reshape(1, 64)).shape == (1, 16)
    assert torch.equal(model(x)[1, 2], layer.bias)


def test_smoothing_changes_nothing_in_float_and_tames_an_outlier() -> None:
    layer = linear(64, 32)
    x = tokens(4, 32, 64)
    x[..., 7] *= 50
    smooth = calibrating(layer, config(SMOOTH, weights(), inputs()))
    plain = calibrating(layer, config("minmax", weights(), inputs()))
    smooth(x), plain(x)
    module = smooth[0]
    equal = functional.linear(module.equalised(x), module.original_weight(), layer.bias)
    assert torch.allclose(equal, layer(x), atol=1e-4, rtol=1e-5)
    largest = x.abs().amax((0, 1))
    expected = largest.sqrt() / layer.weight.abs().amax(0).sqrt()
    assert torch.allclose(module.scale, expected.unsqueeze(0), rtol=1e-5)
    reach = max(float((x / module.scale).max()), -float((x / module.scale).min()))
    assert 127 * float(module.scale_d) == pytest.approx(reach, rel=0.01)
    assert error(smooth, layer, x) <= 0.1 * error(plain, layer, x)


def test_a_small_strength_gives_the_weight_columns_one_size() -> None:
    layer = linear()
    given = config({"smoothquant": {"smooth_strength": 1e-6}}, weights(), inputs())
    model = calibrating(layer, given)
    model(tokens(4, 64))
    assert torch.allclose(model[0].scale[0] * layer.weight.abs().amax(0), torch.ones(64), atol=1e-4)


def test_awq_is_never_worse_than_rounding_on_its_own_measure() -> None:
    layer = linear(64, 32)
    x = tokens(2, 40, 64)
    x[..., ::9] *= 20
    before = layer.weight.clone()
    model = calibrating(layer, config(AWQ, weights("int4"), batch_num=2))
    assert torch.equal(model(x[:1]), layer(x[:1]))
    model(x[1:])
    module = model[0]
    assert torch.equal(layer.weight, before)
    # Folded, in float: the same layer.
    equal = functional.linear(module.equalised(x), module.original_weight(), layer.bias)
    assert torch.allclose(equal, layer(x), atol=1e-4)
    plain = calibrating(layer, config("minmax", weights("int4")))
    fourth = [float((m(x) - layer(x)).pow(4).mean()) for m in (model, plain)]
    assert fourth[0] <= fourth[1]
    assert module.scale.shape == (1, 64)
    assert float(module.scale.max() / module.scale.min()) > 1.5


@pytest.mark.parametrize("algorithm", [SMOOTH, AWQ], ids=["smoothquant", "awq"])
def test_equalised_weights_are_read_a_few_rows_at_a_time(
    algorithm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = linear(64, 24)
    x = tokens(40, 64)
    x[:, 7] *= 50
    given = (
        (algorithm, weights(), inputs()) if algorithm is SMOOTH else (algorithm, weights("int4"))
    )
    read: list[int] = []

    def rows_of(self: ColumnScaled, rows: slice) -> torch.Tensor:
        read.append(len(self.weight[rows]))
        return plain(self, rows)

    plain = ColumnScaled.__getitem__
    monkeypatch.setattr(ColumnScaled, "__getitem__", rows_of)
    states = []
    for together in (64 * 24, 64 * 5):
        monkeypatch.setattr(weight_formats, "_CHUNK", together)
        read.clear()
        model = calibrating(layer, config(*given))
        model(x)
        answer = model(x)
        states.append([answer, *convert(model).state_dict().values()])
        assert max(read) == together // 64
        assert sum(read) == 3 * 24  # factors, answer, codes
    for whole, apart in zip(*states, strict=True):
        assert torch.equal(whole, apart)


def test_gptq_keeps_the_users_weight_and_halves_the_error_on_correlated_inputs() -> None:
    layer = linear(128, 32)
    mixing = torch.randn(128, 128) * torch.logspace(0, -2, 128)
    x = tokens(8, 64, 128) @ mixing
    x[..., 5] = 0
    before = layer.weight.clone()
    model = calibrating(layer, config("gptq", weights("int4"), batch_num=2))
    plain = calibrating(layer, config("minmax", weights("int4")))
    assert torch.equal(model(x[:4]), layer(x[:4]))
    # The last observed call answers with the solved weight already.
    assert not torch.equal(model(x[4:]), layer(x[4:]))
    assert torch.equal(layer.weight, before)
    assert error(model, layer, x) <= 0.5 * error(plain, layer, x)
    solved = model[0].fake_weight()
    levels = solved / model[0].scale_w
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert levels.min() >= -8.001 and levels.max() <= 7.001
    assert (solved[:, 5] == 0).all()
    convert(model)
    assert torch.equal(layer.weight, before)
    assert torch.allclose(model(x), functional.linear(x, solved, layer.bias), atol=1e-5)


def test_gptq_of_uncorrelated_equal_inputs_is_plain_rounding() -> None:
    layer = linear(64, 8)
    q, _ = torch.linalg.qr(torch.randn(64, 64))
    model = calibrating(layer, config("gptq", weights("int4", "group")))
    model(q)
    plain = calibrating(layer, config("minmax", weights("int4", "group")))
    assert torch.allclose(model[0].fake_weight(), plain[0].fake_weight(), atol=1e-6)


@pytest.mark.parametrize("type_", ["hifloat8", "float8_e4m3fn"])
@pytest.mark.parametrize("strategy", ["tensor", "channel"])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_ofmr_finds_what_an_exhaustive_search_finds(kind: str, strategy: str, type_: str) -> None:
    element = ELEMENT_FORMATS[type_]
    scale_of = 2e-4 if type_ == "hifloat8" else 20.0
    if kind == "linear":
        layer: Any = linear(32, 6)
        xs = [tokens(2, 5, 32), tokens(3, 32, seed=1) * 2]
        apply = functional.linear
        axis = -1
    else:
        layer = nn.Conv2d(4, 6, 3, padding="same", groups=2)
        xs = [tokens(2, 4, 6, 6), tokens(1, 4, 5, 6, seed=1)]
        apply = lambda x, w, b: functional.conv2d(x, w, b, padding="same", groups=2)
        axis = 1
    layer.weight *= scale_of
    layer.weight[2] *= 30
    xs = [x * 300 for x in xs]
    model = calibrating(layer, config("ofmr", weights(type_, strategy), inputs(type_), batch_num=2))
    losses_w, losses_x = [], []
    for k in range(-5, 6):
        weight = element.round(layer.weight / 2.0**k) * 2.0**k
        total_w, total_x = torch.zeros(6, dtype=torch.float64), 0.0
        for x in xs:
            y = layer(x)
            others = [i for i in range(y.dim()) if i != axis % y.dim()]
            total_w += (y - apply(x, weight, layer.bias)).double().square().sum(others) / y.numel()
            moved = element.round(x / 2.0**k) * 2.0**k
            total_x += (
                float((y - apply(moved, layer.weight, layer.bias)).square().sum()) / y.numel()
            )
        losses_w.append(total_w)
        losses_x.append(total_x)
    stacked = torch.stack(losses_w)
    best = stacked.argmin(0) if strategy == "channel" else stacked.sum(1).argmin().reshape(1)
    for x in xs:
        assert torch.equal(model(x), layer(x))
    module = model[0]
    assert module.scale_w.flatten().log2().tolist() == [float(k) - 5 for k in best]
    assert module.scale_w.dtype == torch.float32
    assert float(module.scale_d.log2()) == losses_x.index(min(losses_x)) - 5
    shape = (-1, 1) if kind == "linear" else (-1, 1, 1, 1)
    scale = module.scale_w.reshape(shape)
    x = xs[0]
    moved = element.round(x / module.scale_d) * module.scale_d
    expected = apply(moved, element.round(layer.weight / scale) * scale, layer.bias)
    assert torch.allclose(model(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    convert(model)
    assert type(model[0]).__name__ == (
        "NpuQuantizationLinear" if kind == "linear" else "NpuQuantizationConv2d"
    )
    assert torch.allclose(model(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(4, 6, (2, 4), padding="same", dilation=(1, 2)),
        nn.Conv2d(4, 6, 3, padding="valid"),
    ],
)
def test_convolutions_of_every_padding_run_weight_only_too(convolution: nn.Conv2d) -> None:
    model = calibrating(convolution, config("ofmr", weights("hifloat8")))
    x = tokens(2, 4, 9, 8)
    model(x)
    fake = model(x)
    convert(model)
    scale = model[0].deq_scale.reshape(-1, 1, 1)
    convolution.weight.copy_(
        HIFLOAT8.round(convolution.weight / scale.unsqueeze(1)) * scale.unsqueeze(1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = convolution(x)
    assert torch.allclose(fake, expected, atol=1e-5)
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert model[0].act_scale is None


def test_ofmr_may_centre_its_candidates_on_the_range() -> None:
    layer = linear(64, 8)
    layer.weight *= 2.0**-24
    x = tokens(4, 64) * 2.0**20
    plain, centred = (
        calibrating(
            layer, config({"ofmr": options}, weights("float8_e4m3fn"), inputs("float8_e4m3fn"))
        )
        for options in ({}, {"centred": True})
    )
    losses = []
    for model in (plain, centred):
        model(x)
        losses.append(error(model, layer, x) / float(layer(x).var()))
    # Around 1 the weights are too small for float8 and the inputs too large.
    assert losses[0] > 0.1 and losses[1] < 0.01
    largest = math.log2(float(x.abs().max()) / 448)
    assert abs(math.log2(float(centred[0].scale_d)) - largest) <= 6


def test_quantile_averages_maxima_and_takes_magnitudes_of_weights() -> None:
    layer = linear()
    layer.weight[4] = -layer.weight[4].abs()
    given = config("quantile", weights("hifloat8"), inputs("hifloat8"), batch_num=3)
    model = calibrating(layer, given)
    for largest in (10.0, -20.0, 0.0):
        x = torch.zeros(2, 3, 64)
        x[0, 1, 5] = largest
        model(x)
    # 10, 10.1, 9.999.
    assert float(model[0].scale_d) == pytest.approx(9.999 / 16, rel=1e-6)
    expected = layer.weight.abs().amax(1, keepdim=True) / 16
    assert torch.allclose(model[0].scale_w, expected)
    signed = calibrating(layer, given, compat=True)[0].scale_w
    assert float(signed[4]) == 1.0
    assert torch.allclose(signed[0], layer.weight[0].max() / 16)


def test_quantile_with_dynamic_inputs_needs_no_batch() -> None:
    layer = linear()
    given = config("quantile", weights("hifloat8"), inputs("hifloat8", "token", dynamic=True))
    model = calibrating(layer, given)
    x = tokens(5, 64)
    scale = x.abs().amax(-1, keepdim=True) / 15
    moved = HIFLOAT8.round(x / scale) * scale
    expected = functional.linear(moved, model[0].fake_weight(), layer.bias)
    assert torch.allclose(model(x), expected, atol=1e-5)
    convert(model)
    assert type(model[0]).__name__ == "NpuQuantizationLinear"
    assert torch.allclose(model(x), expected, atol=1e-5)


@pytest.mark.parametrize("full", [True, False])
def test_cast_has_no_scale_for_inputs(full: bool) -> None:
    layer = linear()
    for strategy in ("channel", "tensor"):
        acts = inputs("hifloat8") if full else None
        model = calibrating(layer, config("cast", weights("hifloat8", strategy), acts))
        x = tokens(5, 64)
        scale = layer.weight.abs().amax(1, keepdim=True) / 16
        if strategy == "tensor":
            scale = scale.amax().expand(16, 1)
        weight = HIFLOAT8.round(layer.weight / scale) * scale
        expected = functional.linear(HIFLOAT8.round(x) if full else x, weight, layer.bias)
        assert torch.allclose(model[0].scale_w, scale.flatten())
        assert torch.allclose(model(x), expected, atol=1e-5)
        convert(model)
        assert type(model[0]).__name__ == "NpuHIF8CastLinear"
        assert torch.allclose(model(x), expected, atol=1e-5)


def test_float4_below_float8_is_scaled_twice() -> None:
    layer = linear(100, 8).bfloat16()
    given = config(
        "minmax", weights("float4_e2m1", "group") | {"group_size": 64}, inputs("float8_e4m3fn")
    )
    model = calibrating(layer, given)
    x = tokens(6, 100).bfloat16()
    model(x)
    module = model[0]
    weight = layer.weight.float()
    channel = weight.abs().amax(1) / 448
    inner = (weight / channel[:, None]).to(torch.float8_e4m3fn).float()
    expected = torch.zeros_like(weight)
    levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    for start in (0, 64):
        part = inner[:, start : start + 64]
        scale = part.abs().amax(1, keepdim=True) / 6
        nearest = (part.abs() / scale).unsqueeze(-1).sub(levels).abs().argmin(-1)
        expected[:, start : start + 64] = levels[nearest] * part.sign() * scale
    expected *= channel[:, None]
    close = torch.isclose(module.fake_weight().float(), expected, rtol=0.01, atol=1e-6)
    # At ties argmin and half to even may differ.
    assert close.float().mean() > 0.98
    assert module.scale_w.shape == (16, 1)
    assert module.channel_scale.shape == (8,)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("algorithm", "type_", "acts"),
    [
        ("minmax", "int8", "int8"),
        (SMOOTH, "int8", "int8"),
        (AWQ, "int4", None),
        ("gptq", "int4", None),
        ("ofmr", "hifloat8", "hifloat8"),
        ("quantile", "hifloat8", "hifloat8"),
    ],
)
def test_inputs_that_are_not_finite_name_their_layer(
    algorithm: Any, type_: str, acts: str | None, bad: float
) -> None:
    model = nn.Sequential()
    model.add_module("body", nn.Sequential(linear()))
    given = config(algorithm, weights(type_), acts and inputs(acts), batch_num=2)
    quantize(model, given, any_dtype=True)
    model(tokens(3, 64))
    x = tokens(3, 64)
    x[1, 7] = bad
    with pytest.raises(RuntimeError, match=r"layer body.0: .*(NaN|inf)"):
        model(x)
    # The bad batch left no trace that a good one would not end.
    model(tokens(3, 64))
    convert(model)


@pytest.mark.parametrize(
    ("algorithm", "type_"),
    [("minmax", "int8"), ("gptq", "int4"), ("cast", "hifloat8"), ("quantile", "hifloat8")],
)
def test_weights_that_are_not_finite_name_their_layer(algorithm: str, type_: str) -> None:
    model = nn.Sequential(nn.ReLU(), linear())
    model[1].weight[0, 0] = math.inf
    expected = ValueError if algorithm == "gptq" else RuntimeError
    with pytest.raises(expected, match="layer 1: .*inf or NaN"):
        quantize(model, config(algorithm, weights(type_)), any_dtype=True)
    assert type(model[1]) is nn.Linear


def test_inputs_have_two_to_six_axes() -> None:
    model = calibrating(linear(), config("minmax", weights()))
    with pytest.raises(RuntimeError, match="2 to 6 axes"):
        model(torch.zeros(64))
    with pytest.raises(RuntimeError, match="2 to 6 axes"):
        model(torch.zeros(1, 1, 1, 1, 1, 1, 64))
    assert model(torch.zeros(1, 1, 1, 1, 2, 64)).shape == (1, 1, 1, 1, 2, 16)


def test_a_call_without_tokens_is_none() -> None:
    # A mixture of experts sends some of them nothing.
    model = calibrating(linear(), config("minmax", weights(), inputs()))
    assert model(torch.zeros(0, 64)).shape == (0, 16)
    with pytest.raises(RuntimeError, match="0: 0 of 1 calls seen"):
        convert(model)
    model(tokens(2, 64))
    convert(model)
    assert model(torch.zeros(0, 64)).shape == (0, 16)
