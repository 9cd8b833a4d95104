"""What a Conv2d does beside its weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

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
        padding = cast(str | tuple[int, int], layer.padding)
        stride, dilation = cast(tuple[tuple[int, int], ...], (layer.stride, layer.dilation))
        return Convolution(stride, padding, dilation, layer.groups)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        padding = self.padding
        if padding == "same":
            # torch warns of the copy that uneven padding takes; this is the copy.
            height, width = (
                d * (k - 1) for d, k in zip(self.dilation, weight.shape[2:], strict=True)
            )
            left, top = width // 2, height // 2
            x = functional.pad(x, (left, width - left, top, height - top))
            padding = 0, 0
        return functional.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)
