"""Configurations of ``quantize`` by name. ``quantize`` copies them; nothing changes them."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

_HEAD = {"lm_head"}


def _weights(type_: str, strategy: str = "channel") -> dict[str, Any]:
    group = {"group_size": 32} if strategy == "group" else {}
    return {"type": type_, "symmetric": True, "strategy": strategy, **group}


def _inputs(type_: str, strategy: str = "tensor") -> dict[str, Any]:
    return {"type": type_, "symmetric": True, "strategy": strategy}


def _preset(quant_cfg: dict[str, Any], algorithm: dict[str, Any], *skipped: str) -> Config:
    return {
        "batch_num": 1,
        "quant_cfg": quant_cfg,
        "algorithm": algorithm,
        "skip_layers": set(skipped),
    }


INT8_MINMAX_WEIGHT_QUANT_CFG = _preset({"weights": _weights("int8")}, {"minmax": {}}, *_HEAD)
INT4_AWQ_WEIGHT_QUANT_CFG = _preset(
    {"weights": _weights("int4")}, {"awq": {"grids_num": 20}}, *_HEAD
)
INT4_GPTQ_WEIGHT_QUANT_CFG = _preset({"weights": _weights("int4")}, {"gptq": {}}, *_HEAD)
MXFP4_AWQ_WEIGHT_QUANT_CFG = _preset(
    {"weights": _weights("mxfp4_e2m1", "group")}, {"awq": {"grids_num": 20}}, *_HEAD
)
INT8_SMOOTHQUANT_CFG = _preset(
    {"weights": _weights("int8"), "inputs": _inputs("int8")},
    {"smoothquant": {"smooth_strength": 0.5}},
    *_HEAD,
)
HIFP8_OFMR_CFG = _preset(
    {"weights": _weights("hifloat8", "tensor"), "inputs": _inputs("hifloat8")}, {"ofmr": {}}
)
FP8_OFMR_CFG = _preset(
    {"weights": _weights("float8_e4m3fn", "tensor"), "inputs": _inputs("float8_e4m3fn")},
    {"ofmr": {}},
    *_HEAD,
)
MXFP8_QUANT_CFG = _preset(
    {
        "weights": _weights("mxfp8_e4m3fn", "group"),
        "inputs": _inputs("mxfp8_e4m3fn", "group"),
    },
    {"mxquant": {}},
    *_HEAD,
)
HIFP8_CAST_CFG = _preset(
    {"weights": _weights("hifloat8"), "inputs": _inputs("hifloat8")}, {"cast": {}}, *_HEAD
)
del HIFP8_CAST_CFG["batch_num"]
HIFP8_QUANTILE_CFG = _preset(
    {"weights": _weights("hifloat8", "tensor"), "inputs": _inputs("hifloat8")},
    {"quantile": {}},
    *_HEAD,
)
HIFP8_SMOOTHQUANT_CFG = _preset(
    {"weights": _weights("hifloat8"), "inputs": _inputs("hifloat8")},
    {"smoothquant": {"smooth_strength": 0.5}},
    *_HEAD,
)
HIFP8_KVCACHE_CFG = _preset({"kvcache": _inputs("hifloat8")}, {"quantile": {}})

PRESETS: dict[str, Config] = {
    name: value
    for name, value in globals().items()
    if name.endswith("_CFG") and isinstance(value, dict)
}
"""Every preset by its name."""
