"""Conv1dQAT, Conv2dQAT, Conv3dQAT, ConvTranspose1dQAT and ConvTranspose2dQAT.

Source: specification chapter 30 section 9.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.engine.modules.qat.operator import LayerOperator
from workbench.engine.modules.qat.operator_config import OperatorConfig
from workbench.engine.modules.qat.quantisers import WeightSettings

Size = int | tuple[int, ...]


class _Convolution(LayerOperator):
    """The quantisers of a convolution; ``channel_axis`` is where its output channels are stored."""

    channel_axis: ClassVar[int] = 0

    weight: Tensor
    bias: Tensor | None
    out_channels: int
    padding_mode: Any
    groups: int

    def _add_quantisers(self, config: OperatorConfig, device: torch.device | None) -> None:
        self.add_activation("acts_", config.data, device)
        settings = WeightSettings(
            bits=config.weight_bits,
            trained_scales=config.trained_scales,
            channel_axis=self.channel_axis if config.channel_wise else None,
            groups=self.groups,
            deploy_state=True,
        )
        self.add_weight("wts_", settings, self.out_channels if config.channel_wise else 1, device)

    def _own_weights(self) -> dict[str, Tensor]:
        return {"wts_": self.weight} if self.enabled else {}

    def _obstacle(self) -> str:
        if self.padding_mode != "zeros":
            return f"padding_mode is {self.padding_mode!r}; allowed: 'zeros'"
        return ""

    def _quantised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.enabled:
            return x, self.weight
        self._check_input(x)
        quantised = self.quantise_activation("acts_", x), self.quantise_weight("wts_", self.weight)
        self._count()
        return quantised


class _Direct(_Convolution):
    _conv_forward: Callable[..., Tensor]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: str | Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )
        self._prepare(config)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(*self._quantised(input), self.bias)


class _Transposed(_Convolution):
    channel_axis = 1
    compute: ClassVar[Callable[..., Tensor]]
    _output_padding: Callable[..., Any]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        config: Mapping[str, Any] | None = None,
        *,
        output_padding: Size = 0,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )
        self._prepare(config)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        x, weight = self._quantised(input)
        padding = self._output_padding(
            input,
            output_size,
            self.stride,
            self.padding,
            self.kernel_size,
            input.dim() - 2,
            self.dilation,
        )
        return type(self).compute(
            x, weight, self.bias, self.stride, self.padding, padding, self.groups, self.dilation
        )


class Conv1dQAT(_Direct, nn.Conv1d):
    """``torch.nn.Conv1d`` on quantised input and weight; ``(N, C, L)``."""

    float_class = nn.Conv1d
    ranks = (3,)


class Conv2dQAT(_Direct, nn.Conv2d):
    """``torch.nn.Conv2d`` on quantised input and weight; ``(N, C, H, W)``."""

    float_class = nn.Conv2d
    ranks = (4,)


class Conv3dQAT(_Direct, nn.Conv3d):
    """``torch.nn.Conv3d`` on quantised input and weight; ``(N, C, D, H, W)``, no dilation of D."""

    float_class = nn.Conv3d
    ranks = (5,)

    def _obstacle(self) -> str:
        if self.dilation[0] != 1:
            return f"dilation is {self.dilation}; allowed: 1 along the first of three axes"
        return super()._obstacle()


class ConvTranspose1dQAT(_Transposed, nn.ConvTranspose1d):
    """``torch.nn.ConvTranspose1d`` on quantised input and weight; ``(N, C, L)``."""

    float_class = nn.ConvTranspose1d
    ranks = (3,)
    compute = F.conv_transpose1d


class ConvTranspose2dQAT(_Transposed, nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d`` on quantised input and weight; ``(N, C, H, W)``."""

    float_class = nn.ConvTranspose2d
    ranks = (4,)
    compute = F.conv_transpose2d
