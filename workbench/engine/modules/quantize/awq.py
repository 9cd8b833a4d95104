"""awq: columns that meet large inputs are scaled up before they are rounded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.algorithms.awq import search_column_scales
from workbench.engine.algorithms.column_scaled import ColumnScaled
from workbench.engine.algorithms.tokens import ChannelRanges, TokenSample
from workbench.engine.modules.quantize.scaled import ScaledLinear


class LinearAWQuant(ScaledLinear):
    """``scale`` [1, K] multiplies the inputs; the weight is divided by it. Chapter 25 section 7.3.

    The search sees the mean magnitudes of all observed calls and 512 of their tokens.
    """

    def __init__(
        self, ori_module: nn.Module, layer_name: str, quant_config: dict[str, Any]
    ) -> None:
        super().__init__(ori_module, layer_name, quant_config)
        self._ranges = ChannelRanges(self.weight.shape[1], self.weight.device)
        self._restart()

    def _restart(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._sample = TokenSample(self.weight.shape[1], generator=generator)

    def statistics(self) -> dict[str, Any]:
        return {"ranges": self._ranges, "sample": self._sample}

    def observe(self, x: Tensor) -> None:
        self._ranges.update(x)
        self._sample.update(x)

    def finish(self) -> None:
        found = search_column_scales(
            self.weight,
            self._ranges.mean_magnitude,
            self._sample.values,
            self.weight_format,
            grids_num=self.quant_config["algorithm"]["awq"]["grids_num"],
        )
        self.scale = found.scales.reciprocal().unsqueeze(0)
        self.find_weight_factors(self.rounded_weight())
        self._restart()

    def rounded_weight(self) -> ColumnScaled:
        return ColumnScaled(self.weight, self._inverse(), divide=True)

    def equalised(self, x: Tensor) -> Tensor:
        return x * self._inverse()

    def _inverse(self) -> Tensor:
        assert isinstance(self.scale, Tensor)
        return self.scale
