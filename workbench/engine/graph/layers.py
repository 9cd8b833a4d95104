"""What is known of one layer of a captured model."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.engine.graph.rnn import RNN_TYPES

LAYER_TYPES = (
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "Linear",
    "AvgPool2d",
    "LSTM",
    "GRU",
)
"""Module class names that post-training quantisation handles (chapter 10 section 6.1)."""

CHANNEL_WISE_TYPES = (
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "LSTM",
    "GRU",
)
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

    def scale_count(self, *, channel_wise: bool) -> int:
        """How many weight scales the layer has: an LSTM or GRU those of both of its weights."""
        weights = 2 if self.type in RNN_TYPES else 1
        rows = self.weight_shape[0] if weights == 2 else self.out_channels
        return weights * (rows if channel_wise else 1)
