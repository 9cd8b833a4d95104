"""A Linear whose weight, perhaps equalised, lies on the grid of its factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.algorithms.column_scaled import ColumnScaled
from workbench.engine.algorithms.progressive import (
    ProgressiveScales,
    from_progressive,
    progressive_levels,
    progressive_scales,
)
from workbench.engine.algorithms.scale_rule import Factors
from workbench.engine.modules.quantize.base import CalibrationModule
from workbench.engine.numerics.integer import guard_scale

_INT32 = 2**31 - 1


class ScaledLinear(CalibrationModule):
    """Base of algorithms that quantise with one rule of scales: what ``convert`` reads.

    float4 weights below float8 activations are scaled twice (``progressive``): ``channel_scale``
    [N] and ``scale_w`` [N·G, 1].
    """

    channel_scale: Tensor | None

    def __init__(
        self, ori_module: nn.Module, layer_name: str, quant_config: dict[str, Any]
    ) -> None:
        super().__init__(ori_module, layer_name, quant_config)
        self.register_buffer("channel_scale", None)

    @property
    def progressive(self) -> bool:
        return self.act_type == "float8_e4m3fn" and self.wts_type == "float4_e2m1"

    def rounded_weight(self) -> Tensor | ColumnScaled:
        """The weight that the factors are for: the layer's own, equalised or solved."""
        raise NotImplementedError

    def original_weight(self) -> Tensor:
        """The same, whole."""
        return self.rounded_weight()[:]

    def equalised(self, x: Tensor) -> Tensor:
        """The input as the equalised weight wants it."""
        return x

    def find_weight_factors(self, weight: Tensor | ColumnScaled) -> None:
        """``scale_w``, ``offset_w`` and ``channel_scale`` of a weight."""
        if self.progressive:
            assert self.group_size is not None
            scales = progressive_scales(weight[:], self.group_size)
            self.scale_w, self.channel_scale = scales.group, scales.channel
            return
        factors = self.weight_format.factors(weight)
        if self.quant_config.get("compat") and self.wts_type == "hifloat8":
            factors = _of_signed_maximum(weight[:], self.weight_format.strategy)
        self.scale_w, self.offset_w = factors.scale, factors.offset

    def set_activation_factors(self, high: Tensor, low: Tensor) -> None:
        """``scale_d`` and ``offset_d`` [1] of a range."""
        assert self.inputs is not None
        factors = self.inputs.factors(high, low)
        self.scale_d, self.offset_d = factors.scale, factors.offset

    def progressive_levels(self) -> Tensor:
        """float4 values of the weight."""
        return progressive_levels(self.original_weight(), self._progressive(), self._group())

    def fake_weight(self) -> Tensor:
        """The weight on its grid, in its own dtype."""
        if not self.progressive:
            return self.weight_format.fake_quantize(
                self.rounded_weight(), self.weight_factors, dtype=self.weight.dtype
            )
        weight = from_progressive(self.progressive_levels(), self._progressive(), self._group())
        return weight.to(self.weight.dtype)

    def fake_bias(self) -> Tensor | None:
        """The bias, on the accumulator's grid when activations are int8 with one scale."""
        if self.bias is None or self.act_type != "int8" or self.scale_d is None:
            return self.bias
        assert self.scale_w is not None
        step = (self.scale_d * self.scale_w).reshape(-1)
        codes = (self.bias.detach().double() / step).round().clamp(-_INT32 - 1, _INT32)
        return (codes * step).to(self.bias.dtype)

    def fake_forward(self, x: Tensor) -> Tensor:
        moved = self.equalised(x)
        if self.inputs:
            factors = None if self.scale_d is None else Factors(self.scale_d, self.offset_d)
            moved = self.inputs.fake_quantize(moved, factors)
        return nn.functional.linear(moved.to(x.dtype), self.fake_weight(), self.fake_bias())

    def _progressive(self) -> ProgressiveScales:
        assert self.scale_w is not None
        assert self.channel_scale is not None
        return ProgressiveScales(self.channel_scale, self.scale_w)

    def _group(self) -> int:
        assert self.group_size is not None
        return self.group_size


def _of_signed_maximum(weight: Tensor, strategy: str) -> Factors:
    """hifloat8 scales as the reference has them: negative weights do not count."""
    rows = weight.detach().float()
    largest = rows.amax(1, keepdim=True) if strategy == "channel" else rows.amax().reshape(1, 1)
    return Factors(guard_scale(torch.clamp(largest / 16, min=0), compat=True))
