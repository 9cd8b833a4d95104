"""smoothquant: outlier channels of the inputs move into the weight, then minmax."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from workbench.engine.algorithms.column_scaled import ColumnScaled
from workbench.engine.algorithms.smoothquant import smoothed_range, smoothing_factors
from workbench.engine.algorithms.tokens import ChannelRanges
from workbench.engine.modules.quantize.scaled import ScaledLinear


class SmoothQuant(ScaledLinear):
    """``scale`` [1, K] divides the inputs and multiplies the weight. Chapter 25 section 7.2."""

    def __init__(
        self, ori_module: nn.Module, layer_name: str, quant_config: dict[str, Any]
    ) -> None:
        super().__init__(ori_module, layer_name, quant_config)
        self._ranges = ChannelRanges(self.weight.shape[1], self.weight.device)

    def statistics(self) -> dict[str, Any]:
        return {"ranges": self._ranges}

    def observe(self, x: Tensor) -> None:
        self._ranges.update(x)

    def finish(self) -> None:
        assert self.inputs is not None
        strength = self.quant_config["algorithm"]["smoothquant"]["smooth_strength"]
        factors = smoothing_factors(self._ranges.magnitude, self.weight, strength)
        self.scale = factors.unsqueeze(0)
        self.find_weight_factors(self.rounded_weight())
        if not self.inputs.per_token:
            low, high = smoothed_range(self._ranges.low, self._ranges.high, factors)
            self.set_activation_factors(factors.new_tensor(high), factors.new_tensor(low))

    def rounded_weight(self) -> ColumnScaled:
        return ColumnScaled(self.weight, self._factors())

    def equalised(self, x: Tensor) -> Tensor:
        return x / self._factors()

    def _factors(self) -> Tensor:
        assert isinstance(self.scale, Tensor)
        return self.scale
