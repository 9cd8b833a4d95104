"""Layers of no model, one of every kind that the configuration's rules tell apart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    name: str
    type: str
    eligible: bool = True
    reason: str = ""
    has_weight: bool = True
    has_bias: bool = True
    groups: int = 1
    in_channels: int = 8
    out_channels: int = 8


LAYERS = {
    facts.name: facts
    for facts in [
        Facts("stem.conv", "Conv2d"),
        Facts("odd", "Conv2d", in_channels=3),
        Facts("grouped", "Conv2d", groups=2),
        Facts("up", "ConvTranspose2d"),
        Facts("head.fc", "Linear"),
        Facts("nobias", "Linear", has_bias=False),
        Facts("pool", "AvgPool2d", has_weight=False, has_bias=False),
        Facts("vol", "Conv3d"),
        Facts("reused", "Conv2d", eligible=False, reason="it is called 2 times"),
    ]
}
