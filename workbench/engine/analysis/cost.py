"""Size and bit-operations of a configuration (decision 17)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from workbench.engine.files.config import QuantConfig
from workbench.engine.graph.layers import LayerInfo

FLOAT_BITS = 32


@dataclass(frozen=True)
class Cost:
    """``size_bytes``: parameters at their stored width.

    ``bit_operations``: MACs × activation bits × weight bits, for one sample.
    """

    size_bytes: int
    bit_operations: int


def model_cost(
    layers: Mapping[str, LayerInfo], config: QuantConfig | None, float_parameters_bytes: int
) -> Cost:
    """Cost of the model under ``config`` (None: all float).

    ``float_parameters_bytes`` is the float model's parameter size in bytes. Weights of quantised
    layers count at their bits, plus one 8-byte dequantisation factor a scale; biases stay 4 bytes.
    """
    size = float_parameters_bytes
    operations = 0
    for name, layer in layers.items():
        entry = config.layers.get(name) if config is not None else None
        if entry is None or not entry.quant_enable:
            operations += layer.macs * FLOAT_BITS * FLOAT_BITS
            continue
        weight_bits = entry.weight.num_bits if entry.weight is not None else 8
        operations += layer.macs * entry.activation.num_bits * weight_bits
        if layer.has_weight:
            elements = 1
            for n in layer.weight_shape:
                elements *= n
            channel_wise = entry.weight is not None and entry.weight.channel_wise
            scales = layer.scale_count(channel_wise=channel_wise)
            size += (elements * weight_bits + 7) // 8 + 8 * scales - 4 * elements
    return Cost(size, operations)
