"""What is known of one layer of a captured model."""

from __future__ import annotations

from dataclasses import dataclass

LAYER_TYPES = ("Conv2d", "Linear", "ConvTranspose2d", "AvgPool2d")
"""Module class names that post-training quantisation handles (chapter 10 section 6.1)."""

CHANNEL_WISE_TYPES = ("Conv2d", "ConvTranspose2d")
"""Types whose weights are quantised per output channel by default."""


@dataclass(frozen=True)
class LayerInfo:
    """Facts of one module of the captured model.

    Shapes are per call, with the batch dimension first (0 stands for a dynamic one);
    ``macs`` are multiply-accumulates for one sample; ``parameters`` counts elements.
    ``order`` is the position in execution, -1 for a module that is never called.
    """

    name: str
    type: str
    eligible: bool
    reason: str
    order: int
    calls: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    groups: int
    in_channels: int
    out_channels: int
    has_bias: bool
    parameters: int
    macs: int

    @property
    def has_weight(self) -> bool:
        return bool(self.weight_shape)

    @property
    def channel_wise(self) -> bool:
        return self.type in CHANNEL_WISE_TYPES

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.in_channels
