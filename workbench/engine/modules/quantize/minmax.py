"""minmax: factors from the extreme values of the weight and of the observed inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.modules.quantize.activations import RunningRange
from workbench.engine.modules.quantize.base import named
from workbench.engine.modules.quantize.scaled import ScaledLinear


class MinMaxQuant(ScaledLinear):
    """Weight-only: quantised from the first call. Chapter 25 section 7.1."""

    def __init__(
        self, ori_module: nn.Module, layer_name: str, quant_config: dict[str, Any]
    ) -> None:
        super().__init__(ori_module, layer_name, quant_config)
        with named(layer_name):
            self.find_weight_factors(self.weight)
        self._range = RunningRange(self.weight.device)

    @property
    def needs_calls(self) -> bool:
        return self.inputs is not None

    def calls_missing(self) -> int:
        # Scales per token are found at run time: what is observed is for the eye only.
        return 0 if self.inputs and self.inputs.per_token else super().calls_missing()

    def statistics(self) -> dict[str, Any]:
        return {"range": self._range}

    def observe(self, x: Tensor) -> None:
        self._range.update(x)

    def finish(self) -> None:
        if self.inputs and not self.inputs.per_token:
            self.set_activation_factors(self._range.high, self._range.low)

    def rounded_weight(self) -> Tensor:
        return self.weight.detach()


class QuantileQuant(MinMaxQuant):
    """hifloat8; the range of the inputs is a running average. Chapter 25 section 7.6."""

    def __init__(
        self, ori_module: nn.Module, layer_name: str, quant_config: dict[str, Any]
    ) -> None:
        super().__init__(ori_module, layer_name, quant_config)
        self._range = AverageMaximum()

    @property
    def needs_calls(self) -> bool:
        return super().needs_calls and not self.dynamic

    def statistics(self) -> dict[str, Any]:
        return {"range": self._range}


class AverageMaximum(RunningRange):
    """Largest magnitude, averaged over calls: ``0.99 m + 0.01 max |x|`` after the first."""

    def update(self, x: Tensor) -> None:
        seen = RunningRange(x.device)
        seen.update(x)
        largest = torch.maximum(seen.high.abs(), seen.low.abs())
        if bool(torch.isfinite(self.high)):
            largest = 0.99 * self.high.to(x.device) + 0.01 * largest
        self.high, self.low = largest, -largest
