"""What may be configured for a layer of each type (chapter 10 sections 5.3 and 6.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol


class LayerFacts(Protocol):
    """What validation needs to know of a layer; ``graph.layers.LayerInfo`` satisfies it."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def eligible(self) -> bool: ...
    @property
    def reason(self) -> str: ...
    @property
    def has_weight(self) -> bool: ...
    @property
    def has_bias(self) -> bool: ...
    @property
    def groups(self) -> int: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def out_channels(self) -> int: ...


@dataclass(frozen=True)
class TypeRules:
    """Capabilities of a layer type; ``int16`` is "yes", "bias" (only with a bias) or "no"."""

    channel_wise: bool = False
    int16: str = "no"
    six_seven_bits: bool = False
    ada: bool = False
    dmq: bool = True
    asymmetric: bool = True


TYPE_RULES: dict[str, TypeRules] = {
    "Conv2d": TypeRules(channel_wise=True, int16="yes", six_seven_bits=True, ada=True),
    "Conv3d": TypeRules(channel_wise=True, asymmetric=False),
    "Linear": TypeRules(int16="bias", ada=True),
    "ConvTranspose2d": TypeRules(channel_wise=True, int16="yes", ada=True),
    "AvgPool2d": TypeRules(dmq=False),
    "Conv1d": TypeRules(channel_wise=True, int16="yes"),
    "ConvTranspose1d": TypeRules(channel_wise=True, int16="yes"),
    "LSTM": TypeRules(channel_wise=True, int16="yes", dmq=False),
    "GRU": TypeRules(channel_wise=True, int16="yes", dmq=False),
}

RECURRENT = ("LSTM", "GRU")
"""Types with two weights, whose node in the deploy file knows codes of 8 and 16 bits only."""

FUSIBLE_TYPES = ("Conv1d", "Conv2d", "Conv3d")


def rules_for(layer: LayerFacts, *, channel_wise_linear: bool = False) -> TypeRules:
    return rules_of_type(layer.type, channel_wise_linear=channel_wise_linear)


def rules_of_type(kind: str, *, channel_wise_linear: bool = False) -> TypeRules:
    """What a layer type allows; ``channel_wise_linear`` is the opt-in of D11."""
    rules = TYPE_RULES.get(kind, TypeRules(dmq=False))
    if channel_wise_linear and kind == "Linear":
        return replace(rules, channel_wise=True)
    return rules


def channel_wise_words(kind: str) -> str:
    """What is allowed instead of ``channel_wise: true`` on a type that has no channels for it."""
    if kind == "Linear":
        return "false for Linear, unless the config is created with channel_wise_linear=True"
    return f"false for {kind}"


def int4_obstacle(layer: LayerFacts) -> str:
    """Why the layer's activations cannot have 4 bits; empty when they can."""
    return f"{layer.type} layers take 8 or 16 bits" if layer.type in RECURRENT else ""


def int16_obstacle(layer: LayerFacts) -> str:
    """Why the layer's activations cannot have 16 bits; empty when they can."""
    support = rules_for(layer).int16
    if support == "no":
        return f"{layer.type} layers take 4 or 8 bits"
    if support == "bias" and not layer.has_bias:
        return f"a {layer.type} without bias takes 4 or 8 bits"
    return ""


def weight_bits_obstacle(layer: LayerFacts, bits: int) -> str:
    """Why the layer's weights cannot have ``bits`` bits; empty when they can."""
    if bits in (6, 7) and not rules_for(layer).six_seven_bits:
        return "6 and 7 bits are for Conv2d only; 4 or 8"
    if bits == 4 and layer.has_weight:
        if layer.groups > 1:
            return "4 bits need a layer without groups; 8"
        if layer.in_channels % 2:
            return f"4 bits need an even number of input channels, not {layer.in_channels}; 8"
        if layer.type in RECURRENT and layer.out_channels % 2:
            return f"4 bits need an even hidden size, not {layer.out_channels}; 8"
    return ""
