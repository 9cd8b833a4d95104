"""Prepared layers for tests of sessions and views; no model behind them."""

from __future__ import annotations

from workbench.engine.graph.layers import LayerInfo


def make_layers(count: int) -> list[LayerInfo]:
    """A plausible chain: convolutions, every seventh depthwise, a few that cannot be quantised."""
    layers = []
    for i in range(count):
        eligible = i % 11 != 10
        depthwise = i % 7 == 3
        channels = 8 + i % 5
        layers.append(
            LayerInfo(
                name=f"stage{i // 10}.block{i % 10}.conv",
                type="Linear" if i % 13 == 12 else "Conv2d",
                eligible=eligible,
                reason="" if eligible else "its weight is shared with another layer",
                order=i,
                calls=1,
                input_shape=(0, channels, 8, 8),
                output_shape=(0, channels, 8, 8),
                weight_shape=(channels, 1 if depthwise else channels, 3, 3),
                groups=channels if depthwise else 1,
                in_channels=channels,
                out_channels=channels,
                has_bias=True,
                parameters=channels * 9 * (1 if depthwise else channels) + channels,
                macs=64 * channels * 9,
            )
        )
    return layers
