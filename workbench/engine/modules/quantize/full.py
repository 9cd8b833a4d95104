"""Linear on quantised inputs and weights: int8, hifloat8, float8."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.engine.modules.quantize.base import CalibrationModule
from workbench.engine.modules.quantize.deployed import (
    DeployLinear,
    buffer,
    describe,
    in_layer_dtype,
)
from workbench.engine.modules.quantize.ofmr import OfmrQuant
from workbench.engine.modules.quantize.operators import (
    integer_matmul,
    integer_output,
    quantize_codes,
    quantize_tokens,
)
from workbench.engine.modules.quantize.packed import (
    from_bytes,
    spread,
    stored_in_bytes,
    transposed,
)
from workbench.engine.modules.quantize.scaled import ScaledLinear
from workbench.engine.numerics.float4 import FLOAT4
from workbench.engine.numerics.formats import ELEMENT_FORMATS

_INT32 = 2**31 - 1


class NpuQuantizationLinear(DeployLinear):
    """Quantise the input, multiply codes, scale the sums. Chapter 25 section 8.1.

    ``quantized_weight`` [K, N]; int4 [K, N/2] and float4 [K/2, N] hold two codes a byte.
    Activations have one calibrated scale (``act_scale`` is its reciprocal, ``act_offset``) or,
    per token, one found at run time. ``deq_scale`` scales the sums, ``bias`` is added before or
    after, as the kinds of numbers ask. ``scale_factor`` [1, K]: smoothquant's, on the inputs.
    """

    quantized_weight: Tensor
    deq_scale: Tensor
    scale_factor: Tensor | None
    act_scale: Tensor | None
    act_offset: Tensor | None
    y_scale: Tensor | None
    bias: Tensor | None

    def __init__(self, quant_module: ScaledLinear | OfmrQuant) -> None:
        super().__init__(quant_module.layer_name, quant_module.weight, describe(quant_module))
        inputs = quant_module.inputs
        assert inputs is not None
        self.act_type = inputs.type
        self.wts_type = quant_module.weight_format.type
        # ofmr has one scale whatever the strategy says.
        self.per_token = inputs.per_token and not isinstance(quant_module, OfmrQuant)
        self.group_size = quant_module.group_size
        factor = None if quant_module.scale is None else quant_module.scale.reciprocal()
        buffer(
            self, "scale_factor", None if factor is None else in_layer_dtype(factor, quant_module)
        )
        self._inputs(quant_module)
        bias = None if quant_module.bias is None else quant_module.bias.detach().float()
        if isinstance(quant_module, ScaledLinear) and quant_module.progressive:
            self._progressive(quant_module, bias)
            return
        factors = quant_module.weight_factors
        codes = quant_module.weight_format.quantize(quant_module.rounded_weight(), factors).codes
        weight = transposed(codes)
        if self.wts_type == "int4":
            weight = stored_in_bytes(weight.to(torch.int8), axis=1)
        buffer(self, "quantized_weight", weight)
        buffer(self, "y_scale", None)
        scale = factors.scale.reshape(-1).expand(self.out_features)
        if self.per_token:
            buffer(self, "deq_scale", scale)
            buffer(self, "bias", bias)
            return
        assert quant_module.scale_d is not None
        step = quant_module.scale_d * scale
        buffer(self, "deq_scale", step)
        if self.act_type == "int8":
            buffer(self, "bias", _integer_bias(bias, step, quant_module.offset_d, codes))
        else:
            buffer(self, "bias", None if bias is None else bias / step)

    def _inputs(self, quant_module: CalibrationModule) -> None:
        if self.per_token:
            buffer(self, "act_scale", None)
            buffer(self, "act_offset", None)
            return
        assert quant_module.scale_d is not None
        buffer(self, "act_scale", in_layer_dtype(quant_module.scale_d.reciprocal(), quant_module))
        offset = quant_module.offset_d
        zero = torch.zeros_like(quant_module.scale_d) if offset is None else offset
        buffer(self, "act_offset", zero.to(quant_module.weight.dtype))

    def _progressive(self, quant_module: ScaledLinear, bias: Tensor | None) -> None:
        assert quant_module.scale_w is not None
        assert quant_module.scale_d is not None
        assert quant_module.channel_scale is not None
        codes = FLOAT4.encode(quant_module.progressive_levels())
        buffer(self, "quantized_weight", stored_in_bytes(transposed(codes), axis=0))
        groups = quant_module.scale_w.reshape(self.out_features, -1)
        dtype = quant_module.scale_dtype or torch.bfloat16
        buffer(self, "deq_scale", groups.to(dtype))
        buffer(self, "y_scale", (quant_module.scale_d * quant_module.channel_scale).unsqueeze(0))
        buffer(self, "bias", bias)

    def compute(self, x: Tensor) -> Tensor:
        moved = x if self.scale_factor is None else x.float() * self.scale_factor.float()
        element = ELEMENT_FORMATS[self.act_type]
        if self.per_token:
            codes, token_scale = quantize_tokens(moved, element)
        else:
            assert self.act_scale is not None
            codes = quantize_codes(moved, self.act_scale, self.act_offset, element)
        if self.act_type != "int8":
            values = element.decode(codes)
            if self.per_token:
                y = (values @ self.weight_values()) * self.deq_scale * token_scale
                return (y if self.bias is None else y + self.bias).to(x.dtype)
            return self._float_output(values).to(x.dtype)
        total = integer_matmul(codes, self.weight_codes())
        if not self.per_token:
            return integer_output(total, self.deq_scale, self.bias, x.dtype)
        y = total.double() * self.deq_scale * token_scale
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def weight_codes(self) -> Tensor:
        """int8 codes [K, N]."""
        if self.wts_type != "int4":
            return self.quantized_weight
        return from_bytes(self.quantized_weight, 1, self.out_features).to(torch.int8)

    def weight_values(self) -> Tensor:
        """Values of the codes [K, N], without any scale but those of float4's groups."""
        element = ELEMENT_FORMATS[self.wts_type]
        if self.wts_type != "float4_e2m1":
            return element.decode(self.quantized_weight)
        assert self.group_size is not None
        levels = element.decode(from_bytes(self.quantized_weight, 0, self.in_features))
        return levels * spread(self.deq_scale.float().t(), self.group_size, self.in_features)

    def _float_output(self, values: Tensor) -> Tensor:
        sums = values @ self.weight_values()
        if self.y_scale is not None:
            y = sums * self.y_scale
            return y if self.bias is None else y + self.bias
        return (sums if self.bias is None else sums + self.bias) * self.deq_scale


def _integer_bias(
    bias: Tensor | None, step: Tensor, offset: Tensor | None, codes: Tensor
) -> Tensor | None:
    """int32: the bias on the grid of the sums, and what the inputs' offset adds to them."""
    total = None
    if bias is not None:
        total = (bias.double() / step).round().clamp(-_INT32 - 1, _INT32)
    if offset is not None:
        correction = -offset.double() * codes.double().sum(1)
        total = correction if total is None else total + correction
    return None if total is None else total.clamp(-_INT32 - 1, _INT32).to(torch.int32)
