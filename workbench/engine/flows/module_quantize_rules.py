"""Which pairs of formats are legal, with which algorithms, for which layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from workbench.engine.files.problems import Problem
from workbench.engine.flows.module_quantize_config import LayerConfig

Target = Literal["portable", "npu"]
TARGETS = ("portable", "npu")

_LONGEST = 65535
_F32, _F16, _BF16 = torch.float32, torch.float16, torch.bfloat16
_ALL, _HALVES = (_F32, _F16, _BF16), (_F16, _BF16)
_INTEGERS = ("int8", "int4")
_ANY_INTEGER = ("tensor", "channel", "group")
_FLOAT = ("tensor", "channel")


@dataclass(frozen=True)
class Pair:
    """A row of chapter 25 section 3. ``multiples``: N and K must be multiples of these."""

    algorithms: tuple[str, ...]
    weights: tuple[str, ...]
    inputs: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    multiples: tuple[int, int] = (1, 1)
    limited: bool = False
    even_blocks: bool = False
    bias: bool = True


PAIRS: Mapping[tuple[str | None, str], Pair] = {
    ("int8", "int8"): Pair(("minmax", "smoothquant"), _FLOAT, ("tensor", "token"), _HALVES),
    ("int8", "int4"): Pair(
        ("minmax", "smoothquant"), _FLOAT, ("tensor",), (_F16,), multiples=(8, 8)
    ),
    ("hifloat8", "hifloat8"): Pair(
        ("ofmr", "cast", "quantile", "smoothquant"), _FLOAT, ("tensor", "token"), _ALL
    ),
    ("float8_e4m3fn", "float8_e4m3fn"): Pair(("ofmr",), _FLOAT, ("tensor",), _ALL),
    ("mxfp8_e4m3fn", "mxfp8_e4m3fn"): Pair(
        ("mxquant",), ("group",), ("group",), (_BF16,), even_blocks=True
    ),
    ("float8_e4m3fn", "float4_e2m1"): Pair(
        ("minmax", "smoothquant"), ("group",), ("tensor",), (_BF16,), multiples=(1, 64), bias=False
    ),
    (None, "int8"): Pair(("minmax", "awq", "gptq"), _ANY_INTEGER, (), _HALVES, limited=True),
    (None, "int4"): Pair(
        ("minmax", "awq", "gptq"), _ANY_INTEGER, (), _ALL, multiples=(8, 8), limited=True
    ),
    (None, "hifloat8"): Pair(
        ("ofmr", "gptq", "cast", "quantile"), _FLOAT, (), _HALVES, limited=True
    ),
    (None, "float8_e4m3fn"): Pair(("ofmr", "gptq"), _FLOAT, (), _HALVES, limited=True),
    (None, "mxfp4_e2m1"): Pair(
        ("awq", "gptq", "mxquant"), ("group",), (), _HALVES, multiples=(64, 64), limited=True
    ),
    (None, "float4_e2m1"): Pair(
        ("minmax", "awq", "gptq"), ("group",), (), _HALVES, multiples=(64, 64), limited=True
    ),
}
"""Types of activations (None: left as they are) and weights, and what they allow."""


def combination_problems(config: LayerConfig, algorithm: str, layer: str = "") -> list[Problem]:
    """Why a built-in algorithm cannot do what ``config`` asks; the first fault, as it decides.

    In the order of chapter 25 section 3: pair, algorithm, symmetry, strategies.
    """

    def fault(key: str, value: Any, allowed: str) -> list[Problem]:
        return [Problem(layer, key, str(value), allowed)]

    if config.kvcache and algorithm != "quantile":
        return fault("algorithm", algorithm, "quantile, for a key-value cache")
    if config.weights is None:
        return []
    inputs, weights = config.pair
    shown = f"{inputs or '–'}/{weights}"
    pair = PAIRS.get((inputs, str(weights)))
    if pair is None:
        pairs = ", ".join(f"{a or '–'}/{w}" for a, w in PAIRS)
        return fault("pair of inputs/weights types", shown, pairs)
    if algorithm not in pair.algorithms:
        return fault("algorithm", algorithm, f"{', '.join(pair.algorithms)} for {shown}")
    if not config.weights["symmetric"] and not (inputs is None and weights in _INTEGERS):
        return fault("weights.symmetric", False, f"True for {shown}")
    strategy = config.weights["strategy"]
    if strategy not in pair.weights:
        return fault("weights.strategy", strategy, f"{', '.join(pair.weights)} for {shown}")
    if config.inputs and config.inputs["strategy"] not in pair.inputs:
        allowed = f"{', '.join(pair.inputs)} for {shown}"
        return fault("inputs.strategy", config.inputs["strategy"], allowed)
    return []


def dtype_obstacle(
    weight: torch.Tensor, config: LayerConfig, any_dtype: bool = False
) -> str | None:
    """Why the float type of a layer's weight is not taken; None when it is.

    Those of chapter 25 section 3 are, or with ``any_dtype`` float32, float16 and bfloat16 always.
    """
    inputs, weights = config.pair
    allowed = _ALL if any_dtype else PAIRS[inputs, str(weights)].dtypes
    if weight.dtype in allowed:
        return None
    what = f"{inputs}/{weights}" if inputs else f"weight-only {weights}"
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
    return f"the weight is {str(weight.dtype).removeprefix('torch.')}, {what} takes {names}"


def shape_obstacle(
    layer: nn.Module, weight: torch.Tensor, config: LayerConfig, target: Target
) -> str | None:
    """Why the layer's shape is not taken; None when it is.

    Sizes that only the accelerator asks for count with target "npu" alone: what is stored is
    filled with zeros where it must be.
    """
    assert config.weights is not None
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return f"padding_mode is {layer.padding_mode!r}; allowed: 'zeros'"
    if weight.numel() == 0:
        return "the weight is empty"
    rows, columns = weight.shape[0], weight[0].numel()
    group = config.weights.get("group_size")
    if group is not None and group >= columns:
        return f"group_size {group} is not smaller than the {columns} input features"
    if target != "npu" or isinstance(layer, nn.Conv2d):
        return None
    reason = _alignment(PAIRS[config.pair[0], str(config.pair[1])], layer, rows, columns)
    return f"{reason} (target 'npu')" if reason else None


def _alignment(pair: Pair, layer: nn.Module, rows: int, columns: int) -> str | None:
    """What the accelerator's operators ask of a Linear with a weight [rows, columns]."""
    sides = f"the weight [{rows}, {columns}]"
    if pair.limited and max(rows, columns) > _LONGEST:
        return f"a side of {sides} is above {_LONGEST}"
    if rows % pair.multiples[0] or columns % pair.multiples[1]:
        return f"{sides} is no multiple of {list(pair.multiples)}"
    if pair.even_blocks and math.ceil(columns / 32) % 2:
        return f"{columns} input features are an odd number of blocks of 32"
    if not pair.bias and layer.bias is not None:
        return "the layer has a bias"
    return None
