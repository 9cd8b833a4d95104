"""Linear of class ``FP8Linear``, as float8 checkpoints bring them, turned into hifloat8."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from workbench.engine.algorithms.weight_formats import WeightFormat
from workbench.engine.modules.quantize.base import named
from workbench.engine.modules.quantize.deployed import DeployLinear, buffer
from workbench.engine.modules.quantize.operators import quantize_tokens
from workbench.engine.modules.quantize.packed import transposed
from workbench.engine.numerics.hifloat8 import HIFLOAT8

SOURCE = "FP8Linear"
_CHANNELS = WeightFormat("hifloat8", True, "channel")
_TOKENS = 4


class NpuHIF8Linear(DeployLinear):
    """``quantized_weight`` [K, N] codes, ``deq_scale`` [N]; inputs are scaled per token.

    Chapter 25 section 8.3.
    """

    quantized_weight: Tensor
    deq_scale: Tensor
    bias: Tensor | None

    def __init__(self, ori_module: nn.Module, layer_name: str) -> None:
        weight = dequantized(ori_module)
        super().__init__(layer_name, weight, "inputs=hifloat8 per token, weights=hifloat8")
        with named(layer_name):
            quantized = _CHANNELS.quantize(weight)
        buffer(self, "quantized_weight", transposed(quantized.codes))
        buffer(self, "deq_scale", quantized.factors.scale.reshape(-1))
        buffer(self, "bias", ori_module.bias)

    def compute(self, x: Tensor) -> Tensor:
        codes, scale = quantize_tokens(x, HIFLOAT8)
        weight = HIFLOAT8.decode(self.quantized_weight)
        y = (HIFLOAT8.decode(codes) @ weight) * self.deq_scale * scale
        return (y if self.bias is None else y + self.bias.float()).to(x.dtype)


def dequantized(layer: nn.Module) -> Tensor:
    """float32 weight [N, K] of an FP8Linear.

    ``weight_scale_inv`` multiplies in common code and divides in some: what the layer answers to
    random inputs decides; where it cannot answer here, it multiplies.
    """
    weight = cast(Tensor, layer.weight).detach().float()
    scale = _expanded(layer, weight)
    product, quotient = weight * scale, weight / scale
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TOKENS, weight.shape[1], generator=generator).to(weight.device)
    try:
        with torch.no_grad():
            answer = cast(Tensor, layer(x.bfloat16())).float()
    except Exception:  # its kernels may need a device that is not here
        return product
    bias = layer.bias
    offset = bias.detach().float() if isinstance(bias, Tensor) else 0.0
    errors = [
        float((answer - x @ candidate.t() - offset).square().sum().nan_to_num(torch.inf))
        for candidate in (product, quotient)
    ]
    return quotient if errors[1] < errors[0] else product


def _expanded(layer: nn.Module, weight: Tensor) -> Tensor:
    """The scale of each element: of its block, or one for all."""
    scale = cast(Tensor, layer.weight_scale_inv).detach().float()
    block: Any = getattr(layer, "block_size", None)
    if block is None or scale.numel() == 1:
        return scale.reshape(-1, 1) if scale.numel() > 1 else scale.reshape(1, 1)
    rows, columns = (block, block) if isinstance(block, int) else block
    spread = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return spread[: weight.shape[0], : weight.shape[1]]
