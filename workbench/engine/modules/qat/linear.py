"""LinearQAT and MatMulQAT (specification chapter 30 section 9, S11)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.engine.modules.qat.operator import LayerOperator, QATOperator, UnfitSetting
from workbench.engine.modules.qat.operator_config import Allowed, OperatorConfig
from workbench.engine.modules.qat.quantisers import WeightSettings


class LinearQAT(LayerOperator, nn.Linear):
    """``torch.nn.Linear`` on quantised input and weight, with one scale for the whole weight."""

    float_class = nn.Linear
    allowed = Allowed(channel_wise=False)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self._prepare(config)

    def _add_quantisers(self, config: OperatorConfig, device: torch.device | None) -> None:
        if config.channel_wise:
            raise UnfitSetting(
                "channel_wise is True; allowed for a Linear: False", where="LinearQAT config"
            )
        self.add_activation("acts_", config.data, device)
        settings = WeightSettings(
            bits=config.weight_bits,
            trained_scales=config.trained_scales,
            channel_axis=None,
            deploy_state=True,
        )
        self.add_weight("wts_", settings, 1, device)

    def _own_weights(self) -> dict[str, Tensor]:
        return {"wts_": self.weight} if self.enabled else {}

    def forward(self, input: Tensor) -> Tensor:
        if not self.enabled:
            return F.linear(input, self.weight, self.bias)
        self._check_input(input)
        x = self.quantise_activation("acts_", input)
        weight = self.quantise_weight("wts_", self.weight)
        self._count()
        return F.linear(x, weight, self.bias)


class MatMulQAT(QATOperator):
    """``torch.matmul`` of two quantised tensors of 2 to 6 axes; offsets are 0, 8 bits."""

    allowed = Allowed(int16=False, weight=False)
    ranks = range(2, 7)

    def __init__(
        self,
        device: torch.device | str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._prepare(config, torch.device(device) if device is not None else None)

    def _add_quantisers(self, config: OperatorConfig, device: torch.device | None) -> None:
        settings = replace(config.data, symmetric=True)
        for prefix in ("input_", "other_"):
            self.add_activation(prefix, settings, device)

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        if not self.enabled:
            return torch.matmul(input, other)
        for operand in (input, other):
            self._check_input(operand)
        left = self.quantise_activation("input_", input)
        right = self.quantise_activation("other_", other)
        self._count()
        return torch.matmul(left, right)
