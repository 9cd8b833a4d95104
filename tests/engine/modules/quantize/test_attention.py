"""Attention with a key-value cache in hifloat8, on classes named as model code names them."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from small_layers import tokens
from torch import Tensor, nn

from workbench.amct.config import HIFP8_KVCACHE_CFG
from workbench.engine import convert, quantization_report, quantize
from workbench.engine.numerics.hifloat8 import HIFLOAT8

HEADS, SIZE = 2, 8


class Cache:
    """As ``transformers.DynamicCache``: grows along the tokens, one entry a layer."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, cache_kwargs: Any = None
    ) -> tuple[Tensor, Tensor]:
        for held, new in ((self.keys, key), (self.values, value)):
            held[layer_idx] = torch.cat([held[layer_idx], new], -2) if layer_idx in held else new
        return self.keys[layer_idx], self.values[layer_idx]


class DeepseekV3Attention(nn.Module):
    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.qkv = nn.Linear(HEADS * SIZE, 3 * HEADS * SIZE)
        self.out = nn.Linear(HEADS * SIZE, HEADS * SIZE)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Any,
        attention_mask: Any,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        batch, length, _ = hidden_states.shape
        q, k, v = (
            part.reshape(batch, length, HEADS, SIZE).transpose(1, 2)
            for part in self.qkv(hidden_states).chunk(3, -1)
        )
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx, {"some": "thing"})
        past = k.shape[-2] - length
        scores = q @ k.transpose(-1, -2) / SIZE**0.5
        allowed = torch.ones(length, k.shape[-2]).tril(past).bool()
        y = scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, length, -1)), None


class LongcatFlashMLA(DeepseekV3Attention):
    pass


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DeepseekV3Attention(0), LongcatFlashMLA(1)])
        # The layers see inputs of very different sizes.
        self.gain = 30.0

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        for layer in self.layers:
            x, _ = layer(x * self.gain, None, None, past_key_values=cache)
        return x


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def test_each_layer_has_scales_of_its_own_and_the_cache_holds_codes() -> None:
    model = Decoder()
    quantize(model, HIFP8_KVCACHE_CFG | {"batch_num": 2})
    kinds = [(e.name, e.kind, e.formats) for e in quantization_report(model) if e.formats]
    assert kinds == [
        ("layers.0", "DeepseekV3Attention", "kvcache hifloat8"),
        ("layers.1", "LongcatFlashMLA", "kvcache hifloat8"),
    ]
    first, second = tokens(2, 5, 16), tokens(2, 4, 16, seed=1) * 3
    largest: dict[int, list[tuple[float, float]]] = {0: [], 1: []}
    for x in (first, second):
        seen = Cache()
        float_model = Decoder()
        float_model.load_state_dict(
            {
                k.replace("attention.", ""): v
                for k, v in model.state_dict().items()
                if "qkv" in k or "out" in k
            }
        )
        expected = float_model(x, seen)
        assert torch.equal(model(x, Cache()), expected)
        for index in largest:
            largest[index].append(
                (float(seen.keys[index].abs().max()), float(seen.values[index].abs().max()))
            )
    for index, layer in enumerate(model.layers):
        (k1, v1), (k2, v2) = largest[index]
        assert float(layer.scale_k) == pytest.approx((0.99 * k1 + 0.01 * k2) / 16, rel=1e-5)
        assert float(layer.scale_v) == pytest.approx((0.99 * v1 + 0.01 * v2) / 16, rel=1e-5)
        assert layer.layer_idx == index
    assert float(model.layers[0].scale_k) != float(model.layers[1].scale_k)
    convert(model)
    assert [type(layer).__name__ for layer in model.layers] == [
        "NpuDeepseekV3AttentionQuant",
        "NpuLongcatFlashMLA",
    ]
    cache = Cache()
    whole = model(first, cache)
    plain = Cache()
    layer = float_model.layers[0]
    layer(first * 30.0, None, None, plain)
    scale = float(model.layers[0].scale_k)
    assert cache.keys[0].dtype == cache.values[1].dtype == torch.uint8
    expected = HIFLOAT8.round(plain.keys[0] / scale)
    assert torch.equal(HIFLOAT8.decode(cache.keys[0]), expected)
    # Token by token, through one cache, the answers are the same; so they are without a cache.
    stepwise = Cache()
    steps = [model(first[:, i : i + 1], stepwise) for i in range(5)]
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-4)
    assert torch.allclose(model(first), whole, atol=1e-5)
    float_answer = float_model(first, Cache())
    assert 0 < float((whole - float_answer).abs().max()) < 0.2 * float(float_answer.abs().max())


def test_calibration_without_a_cache_and_by_position_works_too() -> None:
    model = nn.ModuleList([DeepseekV3Attention(0)])
    quantize(model, HIFP8_KVCACHE_CFG)
    with pytest.raises(RuntimeError, match="- 0: 0 of 1 calls seen"):
        convert(model)
    x = tokens(1, 3, 16)
    model[0](x, None, None, None)
    convert(model)
    cache = Cache()
    assert torch.allclose(
        model[0](x, None, None, cache)[0],
        model[0](hidden_states=x, position_embeddings=None, attention_mask=None)[0],
    )
    saved = model.state_dict()
    assert {"0.scale_k", "0.scale_v"} <= set(saved)


def test_a_cache_with_plain_numbers_in_it_is_refused() -> None:
    model = nn.ModuleList([DeepseekV3Attention(0)])
    quantize(model, HIFP8_KVCACHE_CFG)
    cache = Cache()
    x = tokens(1, 3, 16)
    model[0](x, None, None, cache)
    convert(model)
    with pytest.raises(RuntimeError, match=r"layer 0: .*not quantised.*fresh cache"):
        model[0](x, None, None, cache)


def test_bad_keys_name_their_layer_and_linears_stay(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.ModuleDict({"attn": DeepseekV3Attention(0), "mlp": nn.Linear(16, 16)})
    with caplog.at_level(logging.WARNING):
        quantize(model, HIFP8_KVCACHE_CFG)
    assert not caplog.records
    assert type(model["mlp"]) is nn.Linear
    assert type(model["attn"].attention.qkv) is nn.Linear
    x = tokens(1, 3, 16)
    x[0, 1, 2] = math.nan
    with pytest.raises(RuntimeError, match="layer attn: an activation holds inf or NaN"):
        model["attn"](x, None, None, Cache())


def test_weights_and_cache_together() -> None:
    given = {
        "quant_cfg": {
            "weights": {"type": "hifloat8", "symmetric": True, "strategy": "channel"},
            "*attn.kvcache": {"type": "hifloat8", "symmetric": True, "strategy": "tensor"},
        },
        "algorithm": "quantile",
    }
    model = nn.ModuleDict(
        {"attn": DeepseekV3Attention(0), "other": LongcatFlashMLA(1), "mlp": nn.Linear(16, 16)}
    ).half()
    quantize(model, given)
    report = {e.name: (e.action, e.formats) for e in quantization_report(model)}
    assert report["attn"] == ("calibrating", "kvcache hifloat8")
    assert report["other"][0] == "float"
    assert report["mlp"] == ("calibrating", "–/hifloat8")
    assert report["attn.qkv"] == ("calibrating", "–/hifloat8")
    x = tokens(1, 3, 16, dtype=torch.float16)
    model["attn"](x, None, None, Cache())
    convert(model)
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert kinds["attn"] == "NpuDeepseekV3AttentionQuant"
    assert kinds["attn.attention.qkv"] == kinds["mlp"] == "NpuWeightQuantizedLinear"
    assert {e.action for e in quantization_report(model) if e.name != "other"} == {"converted"}


def test_weights_after_the_cache_keep_their_names() -> None:
    model = nn.ModuleDict({"attn": DeepseekV3Attention(0)}).half()
    quantize(model, HIFP8_KVCACHE_CFG)
    quantize(
        model,
        {
            "quant_cfg": {
                "weights": {"type": "int8", "symmetric": True, "strategy": "channel"},
            },
            "algorithm": "minmax",
            "skip_layers": ["attn.out"],
        },
    )
    report = {e.name: (e.action, e.formats) for e in quantization_report(model)}
    assert report == {
        "attn": ("calibrating", "kvcache hifloat8"),
        "attn.qkv": ("calibrating", "–/int8"),
        "attn.out": ("float", ""),
    }
