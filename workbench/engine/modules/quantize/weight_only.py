"""Linear on float inputs and small weights."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.engine.modules.quantize.deployed import (
    DeployLinear,
    buffer,
    describe,
    in_layer_dtype,
)
from workbench.engine.modules.quantize.microscaled import stored_blocks, values_of_blocks
from workbench.engine.modules.quantize.ofmr import OfmrQuant
from workbench.engine.modules.quantize.packed import (
    from_words,
    spread,
    stored_in_words,
    transposed,
)
from workbench.engine.modules.quantize.scaled import ScaledLinear
from workbench.engine.numerics.formats import ELEMENT_FORMATS


class NpuWeightQuantizedLinear(DeployLinear):
    """``x · ((codes + offset_w) · scale_w) + bias``. Chapter 25 section 8.2.

    ``quantized_weight`` [K, N]; int4 and float4 as words of eight along N, mxfp4 along K.
    ``scale_w`` [1, N], or [G, N] for groups (mxfp4: bytes), ``offset_w`` is minus the offset.
    ``scale_factor`` [1, K]: awq's, on the inputs. Products are float32.
    """

    quantized_weight: Tensor
    scale_w: Tensor
    offset_w: Tensor | None
    scale_factor: Tensor | None
    bias: Tensor | None

    def __init__(self, quant_module: ScaledLinear | OfmrQuant) -> None:
        super().__init__(quant_module.layer_name, quant_module.weight, describe(quant_module))
        self.wts_type = quant_module.weight_format.type
        self.group_size = quant_module.group_size
        factor = quant_module.scale
        buffer(
            self, "scale_factor", None if factor is None else in_layer_dtype(factor, quant_module)
        )
        bias = quant_module.bias
        # The integer operators of bfloat16 layers take a float32 bias.
        integer = self.wts_type in ("int8", "int4")
        buffer(self, "bias", bias.float() if integer and bias is not None else bias)
        weight = quant_module.rounded_weight()
        if quant_module.weight_format.blocks is not None:
            codes, scales = stored_blocks(weight, self.wts_type)
            buffer(self, "quantized_weight", codes)
            buffer(self, "scale_w", scales)
            buffer(self, "offset_w", None)
            return
        factors = quant_module.weight_factors
        codes = quant_module.weight_format.quantize(weight, factors).codes
        if self.wts_type == "int4":
            codes = codes.to(torch.int8)  # they travel as int32, four times as large
        codes = transposed(codes)
        narrow = self.wts_type in ("int4", "float4_e2m1")
        buffer(self, "quantized_weight", stored_in_words(codes, axis=1) if narrow else codes)
        buffer(self, "scale_w", in_layer_dtype(self._by_column(factors.scale), quant_module))
        offset = factors.offset
        negative = None if offset is None else -self._by_column(offset)
        buffer(self, "offset_w", None if negative is None else negative.to(self.scale_w.dtype))

    def _by_column(self, factors: Tensor) -> Tensor:
        """[N, G, 1], [N, 1], [1, 1] or [1] as [G, N] or [1, N]."""
        return (
            factors.reshape(-1, factors[0].numel()).expand(self.out_features, -1).t().contiguous()
        )

    def compute(self, x: Tensor) -> Tensor:
        moved = x.float() if self.scale_factor is None else x.float() * self.scale_factor.float()
        y = moved @ self.weight_values()
        return (y if self.bias is None else y + self.bias.float()).to(x.dtype)

    def weight_values(self) -> Tensor:
        """The weight as it is multiplied, float32 [K, N]."""
        if self.wts_type == "mxfp4_e2m1":
            return values_of_blocks(
                self.quantized_weight, self.scale_w, self.wts_type, self.in_features
            )
        element = ELEMENT_FORMATS[self.wts_type]
        codes = self.quantized_weight
        if self.wts_type in ("int4", "float4_e2m1"):
            codes = from_words(codes, 1, self.out_features, signed=self.wts_type == "int4")
        values = element.decode(codes)
        del codes
        if self.offset_w is not None:
            values += self._rows(self.offset_w)
        return values.mul_(self._rows(self.scale_w))

    def _rows(self, factors: Tensor) -> Tensor:
        if self.group_size is None:
            return factors.float()
        return spread(factors.float(), self.group_size, self.in_features)
