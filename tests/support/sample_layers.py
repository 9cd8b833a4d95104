"""Layers of no model, for sessions that the widgets show; a notebook imports it as well."""

from __future__ import annotations

from workbench.engine.graph.layers import LayerInfo


def layer(index: int, *, eligible: bool = True) -> LayerInfo:
    kind = "Conv2d" if index % 3 else "Linear"
    return LayerInfo(
        name=f"stage{index // 4}.block{index}.conv",
        type=kind,
        eligible=eligible,
        reason="" if eligible else "its <weights> are shared",
        order=index,
        calls=1,
        input_shape=(0, 8, 4, 4),
        output_shape=(0, 8, 4, 4),
        weight_shape=(8, 8, 3, 3) if kind == "Conv2d" else (8, 8),
        groups=1,
        in_channels=8,
        out_channels=8,
        has_bias=True,
        parameters=584,
        macs=1000 * (index + 1),
    )
