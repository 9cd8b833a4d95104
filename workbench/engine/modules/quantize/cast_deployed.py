"""Linear on inputs cast to hifloat8."""

from __future__ import annotations

from torch import Tensor

from workbench.engine.modules.quantize.cast import HIF8CastQuant
from workbench.engine.modules.quantize.deployed import DeployLinear, buffer, describe
from workbench.engine.modules.quantize.packed import transposed
from workbench.engine.numerics.hifloat8 import HIFLOAT8


class NpuHIF8CastLinear(DeployLinear):
    """``(hif8(x) · codes + bias) · scale_w``, or ``x · (codes · scale_w) + bias``.

    ``quantized_weight`` [K, N] codes, ``scale_w`` [N] float32. Chapter 25 section 8.3.
    """

    quantized_weight: Tensor
    scale_w: Tensor
    bias: Tensor | None

    def __init__(self, quant_module: HIF8CastQuant) -> None:
        super().__init__(quant_module.layer_name, quant_module.weight, describe(quant_module))
        factors = quant_module.weight_factors
        quantized = quant_module.weight_format.quantize(quant_module.weight, factors)
        scale = factors.scale.reshape(-1)
        self.full = quant_module.inputs is not None
        buffer(self, "quantized_weight", transposed(quantized.codes))
        buffer(self, "scale_w", scale)
        bias = quant_module.bias
        buffer(self, "bias", bias.float() / scale if self.full and bias is not None else bias)

    def compute(self, x: Tensor) -> Tensor:
        weight = HIFLOAT8.decode(self.quantized_weight)
        bias = 0.0 if self.bias is None else self.bias.float()
        if self.full:
            y = (HIFLOAT8.round(x).float() @ weight + bias) * self.scale_w
        else:
            y = x.float() @ (weight * self.scale_w) + bias
        return y.to(x.dtype)
