"""What a Conv2d does beside its weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Convolution:
    """Hyper-parameters of a Conv2d that pads with zeros; ``padding`` may be 'same' or 'valid'."""

    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @staticmethod
    def of(layer: nn.Conv2d) -> Convolution:
        padding = layer.padding if isinstance(layer.padding, str) else (*layer.padding,)
        return Convolution((*layer.stride,), padding, (*layer.dilation,), layer.groups)  # type: ignore[arg-type]

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.conv2d(
            x, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )
