"""A configuration as text: the shortest blocks that resolve to it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from google.protobuf import text_format

from workbench.engine.files.config import (
    LayerConfig,
    QuantConfig,
    default_weight,
    require_enabled,
)
from workbench.engine.files.layer_rules import LayerFacts
from workbench.engine.files.problems import Problem, raise_problems
from workbench.engine.files.proto_schema import message_class
from workbench.engine.files.text_blocks import Block, block_of, obstacles, write_block
from workbench.engine.files.text_resolution import Resolution


def format_text_config(
    config: QuantConfig,
    layers: Mapping[str, LayerFacts],
    *,
    channel_wise_linear: bool = False,
) -> str:
    """``config`` as a text configuration; reading it back gives the same entries.

    Layers that ``config`` does not mention are written as skipped, and an absent ``asymmetric`` as
    what it means. Fractions are rounded to float32, which is all that the format holds.

    Errors: ``RuntimeError`` when no layer is enabled; one ``ValueError`` with everything that the
    text format has no words for: 4-bit activations and ``ada_quantize`` with other than 8 bits.
    Chapter 10 section 5.
    """
    require_enabled(config, source="the text configuration")
    wanted = _entries(config, layers, channel_wise_linear)
    blocks = {
        name: block_of(
            entry,
            default_weight(layers[name], channel_wise_linear=channel_wise_linear).channel_wise,
        )
        for name, entry in wanted.items()
    }
    _refuse(config, layers, blocks)
    resolution = _most_useful(config, layers, wanted, blocks, channel_wise_linear)
    message = message_class("amct_config.proto", "AMCTPytorchProto.AMCTConfig")()
    message.batch_num = config.batch_num
    message.activation_offset = config.activation_offset
    message.skip_layers.extend(name for name, entry in wanted.items() if not entry.quant_enable)
    if config.fakequant_precision_mode != "DEFAULT":
        field = message.DESCRIPTOR.fields_by_name["fakequant_precision_mode"]
        mode = field.enum_type.values_by_name[config.fakequant_precision_mode]
        message.fakequant_precision_mode = mode.number
    if not config.do_fusion:
        message.do_fusion = False
    message.skip_fusion_layers.extend(config.skip_fusion_layers)
    if resolution.common is not None:
        message.common_config.SetInParent()
        write_block(resolution.common, message.common_config)
    for name, entry in wanted.items():
        if not _gives(resolution, layers[name], entry):
            override = message.override_layer_configs.add(layer_name=name)
            override.calibration_config.SetInParent()
            write_block(blocks[name], override.calibration_config)
    text: str = text_format.MessageToString(message, as_utf8=True)
    return text


def _entries(
    config: QuantConfig, layers: Mapping[str, LayerFacts], channel_wise_linear: bool
) -> dict[str, LayerConfig]:
    """One entry for every layer that can be quantised, with ``asymmetric`` spelled out."""
    plain = Resolution(config.activation_offset, channel_wise_linear)
    with_ada = any(e.weight and e.weight.wts_algo == "ada_quantize" for e in config.layers.values())
    entries = {}
    for name, layer in layers.items():
        if not layer.eligible:
            continue
        entry = config.layers.get(name)
        if entry is None:
            entries[name] = plain.resolve(layer, None, enabled=False)[0]
            continue
        asymmetric = config.asymmetric(name) and plain.rules(layer).asymmetric
        activation = replace(entry.activation, asymmetric=asymmetric)
        weight = entry.weight
        if weight is None and not with_ada:
            weight = default_weight(layer, channel_wise_linear=channel_wise_linear)
        entries[name] = replace(entry, activation=activation, weight=weight)
    return entries


def _refuse(
    config: QuantConfig, layers: Mapping[str, LayerFacts], blocks: Mapping[str, Block]
) -> None:
    problems = [
        Problem(name, "the layer", "in the configuration", "layers of the model that can be")
        for name in config.layers
        if name not in blocks
    ]
    for name, block in blocks.items():
        problems += [Problem(name, *obstacle) for obstacle in obstacles(block)]
    raise_problems(problems, source="the text configuration")


def _most_useful(
    config: QuantConfig,
    layers: Mapping[str, LayerFacts],
    wanted: Mapping[str, LayerConfig],
    blocks: Mapping[str, Block],
    channel_wise_linear: bool,
) -> Resolution:
    """The common block that leaves the fewest layers to override; None before any other."""
    plain = Resolution(config.activation_offset, channel_wise_linear)
    frequent = Counter(blocks.values())
    candidates = [plain]
    if any(entry.weight is None for entry in wanted.values()):
        # Only a common ADA block gives a layer an entry without weight_quant_params.
        frequent = Counter({b: n for b, n in frequent.items() if _is_ada(b)})
        candidates = []
    candidates += [replace(plain, common=block) for block, _ in frequent.most_common(1)]
    return max(
        candidates,
        key=lambda r: sum(_gives(r, layers[name], entry) for name, entry in wanted.items()),
    )


def _is_ada(block: Block) -> bool:
    return block.weight.wts_algo == "ada_quantize"


def _gives(resolution: Resolution, layer: LayerFacts, entry: LayerConfig) -> bool:
    """Whether a layer gets ``entry`` without an override."""
    got, _ = resolution.resolve(layer, resolution.common, enabled=entry.quant_enable)
    return got == entry
