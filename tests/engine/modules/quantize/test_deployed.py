"""Deploy modules: their own buffers, evaluated in float64, and what the calibrated layer says."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from small_layers import calibrating, config, inputs, tokens, weights
from torch import Tensor, nn

from workbench.engine import convert, quantize
from workbench.engine.modules.quantize.operators import (
    integer_matmul,
    integer_matmul_in_chunks,
    quantize_tokens,
)
from workbench.engine.numerics.element import Blocks
from workbench.engine.numerics.formats import BLOCK_FORMATS, ELEMENT_FORMATS
from workbench.engine.numerics.hifloat8 import HIFLOAT8
from workbench.engine.numerics.integer_formats import INT8

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
OPTIONS = {"awq": {"grids_num": 4}, "smoothquant": {"smooth_strength": 0.5}}
FEATURES, OUTPUTS, GROUP = 136, 20, 32
"""Four whole groups and a tail; outputs that fill no word of eight."""

# Inputs, weights, algorithms, weight strategies, input strategies, dtypes of chapter 25 section 3.
ROWS: list[tuple[str | None, str, str, str, str, list[torch.dtype]]] = [
    (
        "int8",
        "int8",
        "minmax smoothquant",
        "tensor channel",
        "tensor asymmetric token",
        [F16, BF16],
    ),
    ("int8", "int4", "minmax smoothquant", "tensor channel", "tensor asymmetric", [F16]),
    (
        "hifloat8",
        "hifloat8",
        "ofmr cast quantile smoothquant",
        "tensor channel",
        "tensor token",
        [F32, F16, BF16],
    ),
    ("float8_e4m3fn", "float8_e4m3fn", "ofmr", "tensor channel", "tensor", [F32, F16, BF16]),
    ("mxfp8_e4m3fn", "mxfp8_e4m3fn", "mxquant", "group", "group", [BF16]),
    ("float8_e4m3fn", "float4_e2m1", "minmax smoothquant", "group", "tensor", [BF16]),
    (None, "int8", "minmax awq gptq", "tensor channel group", "", [F16, BF16]),
    (None, "int4", "minmax awq gptq", "tensor channel group", "", [F32, F16, BF16]),
    (None, "hifloat8", "ofmr gptq cast quantile", "tensor channel", "", [F16, BF16]),
    (None, "float8_e4m3fn", "ofmr gptq", "tensor channel", "", [F16, BF16]),
    (None, "mxfp4_e2m1", "awq gptq mxquant", "group", "", [F16, BF16]),
    (None, "float4_e2m1", "minmax awq gptq", "group", "", [F16, BF16]),
]


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def combinations() -> list[Any]:
    found = []
    number = itertools.count()
    for act, type_, algorithms, strategies, ways, dtypes in ROWS:
        for algorithm, strategy in itertools.product(algorithms.split(), strategies.split()):
            symmetries = [True, False] if act is None and type_ in ("int8", "int4") else [True]
            for way, symmetric in itertools.product(ways.split() or [""], symmetries):
                dtype = dtypes[next(number) % len(dtypes)]
                name = f"{act}-{type_}-{algorithm}-{strategy}-{way}-{symmetric}"
                found.append(
                    pytest.param(act, type_, algorithm, strategy, way, symmetric, dtype, id=name)
                )
    return found


def nibbles(packed: Tensor, axis: int, signed: bool) -> Tensor:
    """Four-bit codes of bytes or words along an axis, lowest bits first, by shifting."""
    moved = packed.movedim(axis, -1)
    count = 8 * moved.element_size() // 4
    wide = moved.to(torch.int64)
    parts = torch.stack([(wide >> (4 * i)) & 15 for i in range(count)], -1).flatten(-2)
    if signed:
        parts = torch.where(parts >= 8, parts - 16, parts)
    return parts.movedim(-1, axis)


def by_group(factors: Tensor) -> Tensor:
    """[G, N] as [K, N] in float64."""
    rows = [factors[k // GROUP].double() for k in range(FEATURES)]
    return torch.stack(rows)


def weight_only(m: Any, x: Tensor) -> Tensor:
    if m.wts_type == "mxfp4_e2m1":
        codes = nibbles(m.quantized_weight, 0, False)[:FEATURES]
        powers = torch.exp2(by_group(m.scale_w.double() - 127))
        weight = ELEMENT_FORMATS["float4_e2m1"].decode(codes.to(torch.uint8)).double() * powers
    else:
        codes = m.quantized_weight
        if m.wts_type in ("int4", "float4_e2m1"):
            codes = nibbles(codes, 1, m.wts_type == "int4")[:, :OUTPUTS]
        if m.wts_type in ("int8", "int4"):
            weight = codes.double()
        else:
            raw = codes.to(torch.uint8) if m.wts_type == "float4_e2m1" else codes
            weight = ELEMENT_FORMATS[m.wts_type].decode(raw).double()
        spread = by_group if m.scale_w.shape[0] > 1 else lambda f: f.double()
        if m.offset_w is not None:
            weight = weight + spread(m.offset_w)
        weight = weight * spread(m.scale_w)
    if m.scale_factor is not None:
        x = x * m.scale_factor.double()
    y = x @ weight
    return y if m.bias is None else y + m.bias.double()


def full(m: Any, x: Tensor) -> Tensor:
    element = ELEMENT_FORMATS[m.act_type]
    if m.scale_factor is not None:
        x = (x.float() * m.scale_factor.float()).double()
    token = None
    if m.act_scale is None:
        target = 127 if m.act_type == "int8" else 15
        token = (x.float().abs().amax(-1, keepdim=True) / target).double()
        values = element.round(x.float() / token.float()).double()
    else:
        values = element.round(x.float() * m.act_scale.float() + m.act_offset.float()).double()
    codes = m.quantized_weight
    if m.wts_type == "int4":
        weight = nibbles(codes, 1, True)[:, :OUTPUTS].double()
    elif m.wts_type == "int8":
        weight = codes.double()
    elif m.wts_type == "float4_e2m1":
        raw = nibbles(codes, 0, False)[:FEATURES].to(torch.uint8)
        weight = ELEMENT_FORMATS["float4_e2m1"].decode(raw).double() * by_group(m.deq_scale.t())
        y = (values @ weight) * m.y_scale.double()
        return y if m.bias is None else y + m.bias.double()
    else:
        weight = element.decode(codes).double()
    sums = values @ weight
    if token is not None:
        y = sums * m.deq_scale.double() * token
        return y if m.bias is None else y + m.bias.double()
    return (sums if m.bias is None else sums + m.bias.double()) * m.deq_scale.double()


def cast(m: Any, x: Tensor) -> Tensor:
    weight = HIFLOAT8.decode(m.quantized_weight).double()
    bias = 0.0 if m.bias is None else m.bias.double()
    if m.full:
        return (HIFLOAT8.round(x.float()).double() @ weight + bias) * m.scale_w.double()
    return x @ (weight * m.scale_w.double()) + bias


def mx(m: Any, x: Tensor) -> Tensor:
    if m.wts_type == "mxfp4_e2m1":
        m.scale_factor = None
        return weight_only(m, x)
    weight = ELEMENT_FORMATS["float8_e4m3fn"].decode(m.quantized_weight).double()
    scale = m.scale_w.flatten(1)[:, : math.ceil(FEATURES / 32)].t()
    weight = weight * torch.exp2(by_group(scale.double() - 127))
    y = BLOCK_FORMATS["mxfp8_e4m3fn"].round(x.float()).double() @ weight
    return y if m.bias is None else y + m.bias.double()


REFERENCES = {
    "NpuQuantizationLinear": full,
    "NpuWeightQuantizedLinear": weight_only,
    "NpuHIF8CastLinear": cast,
    "NpuMXQuantizationLinear": mx,
}


@pytest.mark.parametrize(
    ("act", "type_", "algorithm", "strategy", "way", "symmetric", "dtype"), combinations()
)
def test_every_combination_computes_its_formula_and_what_was_calibrated(
    act: str | None,
    type_: str,
    algorithm: str,
    strategy: str,
    way: str,
    symmetric: bool,
    dtype: torch.dtype,
) -> None:
    seed = sum(map(ord, f"{act}{type_}{algorithm}{strategy}{way}"))
    torch.manual_seed(seed)
    layer = nn.Linear(FEATURES, OUTPUTS, bias=seed % 3 > 0).to(dtype)
    acts = None
    if act is not None:
        acts = inputs(act, "tensor" if way == "asymmetric" else way, symmetric=way != "asymmetric")
    given = config(
        {algorithm: OPTIONS.get(algorithm, {})}, weights(type_, strategy, symmetric=symmetric), acts
    )
    model = nn.Sequential(layer)
    quantize(model, given)
    x = tokens(3, 10, FEATURES, seed=seed, dtype=dtype)
    model(x)
    calibrated = model(x).float()
    assert convert(model) is model
    module = model[0]
    deployed = model(x)
    assert deployed.dtype == dtype and deployed.shape == (3, 10, OUTPUTS)
    difference = (deployed.float() - calibrated).square().mean().sqrt()
    assert difference <= 0.02 * calibrated.std()
    # Against the float layer it is a quantised one: not equal, not far.
    loss = (layer(x).float() - deployed.float()).square().mean().sqrt() / calibrated.std()
    assert 0 < loss < 0.3
    rows = x.reshape(-1, FEATURES).double()
    expected = REFERENCES[type(module).__name__](module, rows).reshape(deployed.shape)
    ulp = torch.finfo(dtype).eps * expected.abs().clamp(min=torch.finfo(dtype).tiny)
    # float32 sums of 136 products lose a little more than float64 ones.
    sums = 4 * FEATURES * 2.0**-24 * expected.abs().amax()
    assert ((deployed.double() - expected).abs() <= ulp + sums).all()


@pytest.mark.parametrize(
    ("type_", "strategy", "bits", "per_weight"),
    [
        ("int8", "channel", 8, 0.0),
        ("int4", "channel", 4, 0.0),
        ("int4", "group", 4, 16 / 32),
        ("hifloat8", "tensor", 8, 0.0),
        ("float8_e4m3fn", "channel", 8, 0.0),
        ("float4_e2m1", "group", 4, 16 / 32),
        ("mxfp4_e2m1", "group", 4, 8 / 32),
    ],
)
def test_what_is_stored_is_as_small_as_the_format(
    type_: str, strategy: str, bits: int, per_weight: float
) -> None:
    layer = nn.Linear(512, 256, bias=False).half()
    algorithm = {"mxfp4_e2m1": "mxquant", "hifloat8": "cast", "float8_e4m3fn": "ofmr"}.get(
        type_, "minmax"
    )
    model = calibrating(layer, config(algorithm, weights(type_, strategy)))
    model(tokens(2, 512, dtype=F16))
    convert(model)
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    per_channel = 256 * 4
    expected = 512 * 256 * (bits + per_weight) / 8
    assert expected <= size <= expected + per_channel
    assert not list(model.parameters())


def test_buffers_have_the_shapes_and_types_of_the_chapter() -> None:
    def buffers(algorithm: Any, w: Any, a: Any = None, **o: Any) -> dict[str, Any]:
        torch.manual_seed(1)
        layer = nn.Linear(128, 64).bfloat16()
        model = calibrating(layer, config(algorithm, w, a), **o)
        model(tokens(3, 128, dtype=BF16))
        convert(model)
        return {
            k.removeprefix("0."): (list(v.shape), v.dtype) for k, v in model.state_dict().items()
        }

    smooth = {"smoothquant": {"smooth_strength": 0.5}}
    assert buffers(smooth, weights(), inputs(symmetric=False)) == {
        "quantized_weight": ([128, 64], torch.int8),
        "scale_factor": ([1, 128], BF16),
        "act_scale": ([1], BF16),
        "act_offset": ([1], BF16),
        "deq_scale": ([64], F32),
        "bias": ([64], torch.int32),
    }
    assert buffers("minmax", weights("int4"), inputs())["quantized_weight"] == (
        [128, 32],
        torch.int8,
    )
    assert buffers("minmax", weights("int4")) == {
        "quantized_weight": ([128, 8], torch.int32),
        "scale_w": ([1, 64], BF16),
        "bias": ([64], F32),
    }
    assert buffers("minmax", weights("int8", "group", symmetric=False)) == {
        "quantized_weight": ([128, 64], torch.int8),
        "scale_w": ([4, 64], BF16),
        "offset_w": ([4, 64], BF16),
        "bias": ([64], F32),
    }
    assert buffers("mxquant", weights("mxfp4_e2m1", "group")) == {
        "quantized_weight": ([16, 64], torch.int32),
        "scale_w": ([4, 64], torch.uint8),
        "bias": ([64], BF16),
    }
    mxfp8 = buffers("mxquant", weights("mxfp8_e4m3fn", "group"), inputs("mxfp8_e4m3fn", "group"))
    assert mxfp8["scale_w"] == ([64, 2, 2], torch.uint8)
    assert mxfp8["bias"] == ([64], F32)
    pair = buffers("minmax", weights("float4_e2m1", "group"), inputs("float8_e4m3fn"))
    assert pair["quantized_weight"] == ([64, 64], torch.uint8)
    assert pair["deq_scale"] == ([64, 4], BF16)
    assert pair["y_scale"] == ([1, 64], F32)
    assert buffers("cast", weights("hifloat8"), inputs("hifloat8"))["bias"] == ([64], F32)
    tokens_only = buffers("minmax", weights(), inputs(strategy="token"))
    assert set(tokens_only) == {"quantized_weight", "deq_scale", "bias"}


def test_scales_may_stay_float32_and_do_where_half_floats_cannot_hold_them() -> None:
    def scale(layer: nn.Linear, scale_dtype: Any = None) -> Tensor:
        model = calibrating(layer, config("minmax", weights("int4")))
        convert(model, scale_dtype=scale_dtype)
        return model[0].scale_w

    layer = nn.Linear(64, 8).half()
    assert scale(layer).dtype == F16
    assert scale(layer, "float32").dtype == F32
    layer.weight *= 2e-5
    # 1/8 of a subnormal step: float16 has no such scale.
    assert scale(layer).dtype == F32
    with pytest.raises(ValueError, match="scale_dtype is 'int8'; allowed: float32"):
        convert(nn.Sequential(), scale_dtype="int8")  # type: ignore[arg-type]


def test_extreme_codes_add_up_exactly() -> None:
    x = torch.full((20, 4096), -128, dtype=torch.int8)
    x[::2] = 127
    x[3] = torch.randint(-128, 128, (4096,), dtype=torch.int8)
    weight = torch.full((4096, 16), -128, dtype=torch.int8)
    weight[:, ::3] = 127
    weight[:, 1] = torch.randint(-128, 128, (4096,), dtype=torch.int8)
    expected = torch.zeros(20, 16, dtype=torch.int64)
    for k in range(4096):
        expected += x[:, k, None].long() * weight[k].long()
    assert torch.equal(integer_matmul(x, weight).long(), expected)
    assert torch.equal(integer_matmul_in_chunks(x, weight), expected)
    assert integer_matmul(x[:0], weight).shape == (0, 16)


def test_the_correction_of_an_offset_is_exact() -> None:
    layer = nn.Linear(4096, 8)
    layer.weight.copy_(torch.randint(-128, 128, (8, 4096)) / 128)
    layer.weight[:, 0] = -1.0
    model = calibrating(layer, config("minmax", weights(), inputs(symmetric=False)))
    x = tokens(5, 4096) * 100 + 250
    x[:, 0], x[:, 1] = 500.0, -10.0
    model(x)
    module: Any = model[0]
    scale, offset = float(module.scale_d), int(module.offset_d)
    codes = ((layer.weight.double() * 128).round()).clamp(-128, 127).long()
    convert(model)
    act = INT8.encode(x * model[0].act_scale + offset)
    sums = (act.long() - offset) @ codes.t()
    step = (scale * module.scale_w).flatten().double()
    expected = (sums + (layer.bias.double() / step).round()) * model[0].deq_scale.double()
    assert torch.equal(model[0].quantized_weight.t().long(), codes)
    assert torch.equal(model(x), expected.float())


def test_tokens_of_zeros_and_of_other_counts() -> None:
    for element in (INT8, HIFLOAT8):
        x = tokens(2, 3, 16)
        x[0, 1] = 0
        codes, scale = quantize_tokens(x, element)
        assert scale.shape == (2, 3, 1)
        assert float(scale[0, 1]) == 1.0
        top = element.decode(codes).abs().amax(-1)
        assert top[0, 1] == 0
        assert top[1, 2] == element.dynamic_target


def test_types_of_codes_and_factors_survive_a_change_of_the_models_type() -> None:
    layer = nn.Linear(64, 8)
    model = calibrating(layer, config("ofmr", weights("float8_e4m3fn"), inputs("float8_e4m3fn")))
    x = tokens(4, 64)
    model(x)
    convert(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = model(x)
    model.half().to(torch.float64).bfloat16()
    for key, value in model.state_dict().items():
        assert value.dtype == before[key].dtype
        assert torch.equal(value.view(torch.uint8), before[key].view(torch.uint8))
    assert torch.equal(model(x), expected)
    assert model(x.bfloat16()).dtype == BF16


def test_bad_inputs_of_a_converted_layer_name_it() -> None:
    model = calibrating(nn.Linear(64, 8), config("minmax", weights(), inputs()))
    model(tokens(2, 64))
    convert(model)
    with pytest.raises(ValueError, match=r"layer 0: int8 has no code for NaN"):
        model(torch.full((2, 64), math.nan))
    with pytest.raises(RuntimeError, match=r"layer 0: an input has shape \[2, 63\]"):
        model(torch.zeros(2, 63))
    assert model(torch.full((1, 64), math.inf)).isfinite().all()
    assert "in_features=64, out_features=8, inputs=int8 per tensor" in repr(model[0])


def test_blocks_of_a_deployed_weight_are_the_formats_own() -> None:
    layer = nn.Linear(FEATURES, OUTPUTS).half()
    model = calibrating(layer, config("mxquant", weights("mxfp4_e2m1", "group")))
    module: Any = model[0]
    own = BLOCK_FORMATS["mxfp4_e2m1"].encode(layer.weight)
    assert torch.equal(module.scale_w, own.scales.t())
    codes = nibbles(module.quantized_weight, 0, False)[:FEATURES].to(torch.uint8)
    assert torch.equal(codes.t(), own.codes)
    values = BLOCK_FORMATS["mxfp4_e2m1"].decode(Blocks(codes.t().contiguous(), own.scales))
    x = torch.eye(FEATURES).half()
    assert torch.allclose(model(x) - module.bias, values.t().half(), atol=2e-3)
