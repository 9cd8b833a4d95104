"""cast: inputs become hifloat8 as they are, weights with a scale per output."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from workbench.engine.algorithms.scale_rule import Factors
from workbench.engine.modules.quantize.base import named
from workbench.engine.modules.quantize.scaled import ScaledLinear
from workbench.engine.numerics.hifloat8 import HIFLOAT8


class HIF8CastQuant(ScaledLinear):
    """Needs no calibration; ``scale_w`` has one entry per output. Chapter 25 section 7.7."""

    def __init__(
        self, ori_module: nn.Module, layer_name: str, quant_config: dict[str, Any]
    ) -> None:
        super().__init__(ori_module, layer_name, quant_config)
        with named(layer_name):
            self.find_weight_factors(self.weight)
        assert self.scale_w is not None
        self.scale_w = self.scale_w.reshape(-1).expand(self.weight.shape[0]).contiguous()

    @property
    def needs_calls(self) -> bool:
        return False

    @property
    def weight_factors(self) -> Factors:
        assert self.scale_w is not None
        return Factors(self.scale_w.reshape(-1, 1))

    def rounded_weight(self) -> Tensor:
        return self.weight.detach()

    def fake_forward(self, x: Tensor) -> Tensor:
        moved = HIFLOAT8.round(x) if self.inputs else x
        return nn.functional.linear(moved, self.fake_weight(), self.bias)
