"""Conv2d on hifloat8 or float8 codes."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.engine.modules.quantize.deployed import (
    DeployModule,
    buffer,
    describe,
    in_layer_dtype,
)
from workbench.engine.modules.quantize.ofmr import OfmrQuant
from workbench.engine.modules.quantize.operators import quantize_codes
from workbench.engine.numerics.formats import ELEMENT_FORMATS


class NpuQuantizationConv2d(DeployModule):
    """``(conv(values of q(x), values of codes) + bias) · deq_scale``. Chapter 25 section 8.3.

    ``quantized_weight`` [N, C, kh, kw] codes, ``deq_scale`` [N]. Weight-only: the inputs stay as
    they are, ``act_scale`` is None.
    """

    quantized_weight: Tensor
    deq_scale: Tensor
    act_scale: Tensor | None
    act_offset: Tensor | None
    bias: Tensor | None

    def __init__(self, quant_module: OfmrQuant) -> None:
        super().__init__(quant_module.layer_name, describe(quant_module))
        assert quant_module.convolution is not None
        self.convolution = quant_module.convolution
        self.wts_type = quant_module.weight_format.type
        factors = quant_module.weight_factors
        quantized = quant_module.weight_format.quantize(quant_module.weight, factors)
        step = factors.scale.reshape(-1).expand(quant_module.weight.shape[0])
        scale = quant_module.scale_d
        if scale is not None:
            step = step * scale
        buffer(self, "quantized_weight", quantized.codes)
        buffer(self, "deq_scale", step)
        reciprocal = None if scale is None else in_layer_dtype(scale.reciprocal(), quant_module)
        buffer(self, "act_scale", reciprocal)
        buffer(self, "act_offset", None if scale is None else torch.zeros_like(scale))
        bias = quant_module.bias
        buffer(self, "bias", None if bias is None else bias.float() / step)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's answer [B, N, H, W] (or without B), in the dtype of the input."""
        element = ELEMENT_FORMATS[self.wts_type]
        values = x.float()
        if self.act_scale is not None:
            codes = quantize_codes(x, self.act_scale, self.act_offset, element)
            values = element.decode(codes)
        sums = self.convolution(values, element.decode(self.quantized_weight))
        if self.bias is not None:
            sums = sums + self.bias.reshape(-1, 1, 1)
        return (sums * self.deq_scale.reshape(-1, 1, 1)).to(x.dtype)
