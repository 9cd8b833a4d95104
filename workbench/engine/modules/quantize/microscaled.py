"""Linear on mx blocks: weights once, inputs at every call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.algorithms.column_scaled import ColumnScaled
from workbench.engine.algorithms.weight_formats import WeightFormat
from workbench.engine.modules.quantize.base import named
from workbench.engine.modules.quantize.deployed import DeployLinear, buffer
from workbench.engine.modules.quantize.packed import from_words, stored_in_words, transposed
from workbench.engine.numerics.element import Blocks
from workbench.engine.numerics.formats import BLOCK_FORMATS
from workbench.engine.numerics.microscaling import BLOCK, MXFP8, pair_scales


class NpuMXQuantizationLinear(DeployLinear):
    """Takes a float Linear's place at once: there is nothing to calibrate. Chapter 25 section 8.3.

    mxfp4, weight-only: ``quantized_weight`` [K/8, N] int32, ``scale_w`` bytes [K/32, N]. mxfp8,
    inputs and weights: [K, N] float8 and bytes [N, pairs of blocks, 2].
    """

    quantized_weight: Tensor
    scale_w: Tensor
    bias: Tensor | None

    def __init__(
        self, ori_module: nn.Linear, layer_name: str, quant_config: dict[str, Any]
    ) -> None:
        type_ = quant_config["weights_cfg"]["quant_type"]
        full = quant_config["inputs_cfg"].get("enable_quant") is not False
        what = f"inputs={type_}, weights={type_}" if full else f"weights={type_}"
        super().__init__(layer_name, ori_module.weight, what)
        self.wts_type = type_
        self.full = full
        with named(layer_name):
            codes, scales = stored_blocks(ori_module.weight.detach(), type_)
        buffer(self, "quantized_weight", codes)
        buffer(self, "scale_w", scales)
        bias = ori_module.bias
        buffer(self, "bias", bias.float() if full and bias is not None else bias)

    def compute(self, x: Tensor) -> Tensor:
        moved = MXFP8.round(x.float()) if self.full else x.float()
        weight = values_of_blocks(
            self.quantized_weight, self.scale_w, self.wts_type, self.in_features
        )
        y = moved @ weight
        return (y if self.bias is None else y + self.bias.float()).to(x.dtype)


def stored_blocks(weight: Tensor | ColumnScaled, type_: str) -> tuple[Tensor, Tensor]:
    """Codes and scale bytes of a weight [N, K] as they are stored.

    Raises ``RuntimeError`` when the weight holds inf or NaN.
    """
    quantized = WeightFormat(type_, True, "group", BLOCK).quantize(weight)
    codes, scales = transposed(quantized.codes), quantized.factors.scale
    if type_ == MXFP8.name:
        if scales.shape[1] % 2:
            # Block pairs: one more with scale 1, of which nothing is read.
            one = torch.full_like(scales[:, :1], 127)
            scales = torch.cat([scales, one], 1)
        return codes, pair_scales(scales)
    return stored_in_words(codes, axis=0), transposed(scales)


def values_of_blocks(codes: Tensor, scales: Tensor, type_: str, features: int) -> Tensor:
    """float32 [K, N] of what ``stored_blocks`` gives."""
    count = -(-features // BLOCK)
    if type_ == MXFP8.name:
        scales = scales.flatten(1)[:, :count].t()
    else:
        codes = from_words(codes, 0, features, signed=False)
    return BLOCK_FORMATS[type_].decode(Blocks(codes, scales, axis=0))
