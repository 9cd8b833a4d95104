"""One ``CalibrationConfig`` of a text configuration, read and written (chapter 10 section 5.1)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from workbench.engine.files.config import ActivationParams, LayerConfig, WeightParams
from workbench.engine.files.config_rules import LAYER_FIELDS, Reader
from workbench.engine.files.problems import Problem

_IFMR_FLOATS = ("search_step", "max_percentile", "min_percentile")
_ADA_FLOATS = ("reg_param", "warm_start")
_BITS_OF_TYPE = {"INT8": 8, "INT16": 16}
_TYPE_OF_BITS = {bits: name for name, bits in _BITS_OF_TYPE.items()}


@dataclass(frozen=True)
class Block:
    """The settings that a text configuration gives to a layer, a type or all layers.

    ``activation.asymmetric`` and ``channel_wise`` None: not given, the layer decides.
    ``weight.channel_wise`` means nothing here.
    """

    activation: ActivationParams = field(default_factory=ActivationParams)
    weight: WeightParams = field(default_factory=WeightParams)
    channel_wise: bool | None = None
    dmq_balancer_param: float | None = None


def read_block(message: Any, where: str) -> tuple[Block, list[Problem]]:
    """The block of a ``CalibrationConfig``, and what is outside its range.

    ``where`` names the block in the problems, which speak of the text format's fields. What is
    outside its range has its default in the block, so that reading can go on.
    """
    acts = message.WhichOneof("acts_quant_algo") or "ifmr_quantize"
    wts = message.WhichOneof("wts_quant_algo") or "arq_quantize"
    weight_message = getattr(message, wts)
    dmq = (
        shortest(message.dmq_balancer.migration_strength)
        if message.HasField("dmq_balancer")
        else None
    )
    weight = _weight_of(weight_message, wts)
    # The JSON's own checks, so that the two formats cannot drift apart.
    reader = Reader(None)
    raw = reader.read_layer(
        "",
        {
            LAYER_FIELDS.activation: _activation_of(getattr(message, acts), acts),
            LAYER_FIELDS.weight: weight,
        }
        | ({} if dmq is None else {"dmq_balancer_param": dmq}),
    )
    assert raw is not None
    problems = [replace(p, key=f"{where}: {_field_of(p.key, acts, wts)}") for p in reader.problems]
    given = message.HasField(wts) and weight_message.HasField("channel_wise")
    block = Block(
        activation=ActivationParams(**raw[LAYER_FIELDS.activation]),
        weight=WeightParams(**raw[LAYER_FIELDS.weight]),
        channel_wise=weight_message.channel_wise if given else None,
        dmq_balancer_param=raw["dmq_balancer_param"],
    )
    return block, problems


def block_of(entry: LayerConfig, channel_wise_default: bool) -> Block:
    """The block that gives a layer the settings of ``entry``."""
    weight = entry.weight or WeightParams(channel_wise=channel_wise_default)
    own = weight.channel_wise
    return Block(
        activation=entry.activation,
        weight=replace(weight, channel_wise=False),
        channel_wise=None if own == channel_wise_default else own,
        dmq_balancer_param=entry.dmq_balancer_param,
    )


def obstacles(block: Block) -> list[tuple[str, str, str]]:
    """(key, value, allowed) of what a text configuration has no words for."""
    found = []
    if block.activation.num_bits not in _TYPE_OF_BITS:
        bits = str(block.activation.num_bits)
        found.append((f"{LAYER_FIELDS.activation}.num_bits", bits, "8, 16 in a text config"))
    if block.weight.wts_algo == "ada_quantize" and block.weight.num_bits != 8:
        bits = str(block.weight.num_bits)
        allowed = "8 with ada_quantize in a text config"
        found.append((f"{LAYER_FIELDS.weight}.num_bits", bits, allowed))
    return found


def write_block(block: Block, message: Any) -> None:
    """Set the fields of a ``CalibrationConfig`` that differ from their defaults."""
    activation, weight = block.activation, block.weight
    if activation.act_algo == "hfmg":
        target = message.hfmg_quantize
        _set(target, "num_of_bins", activation.num_of_bins)
    else:
        target = message.ifmr_quantize
        for name in _IFMR_FLOATS:
            _set(target, name, getattr(activation, name))
        _set(target, "search_range_start", activation.search_range[0])
        _set(target, "search_range_end", activation.search_range[1])
    target.SetInParent()
    if activation.asymmetric is not None:
        target.asymmetric = activation.asymmetric
    if activation.num_bits != 8:
        target.dst_type = target.CalibrationDataType.Value(_TYPE_OF_BITS[activation.num_bits])
    if weight.wts_algo == "ada_quantize":
        target = message.ada_quantize
        _set(target, "num_iteration", weight.num_iteration)
        for name in _ADA_FLOATS:
            _set(target, name, getattr(weight, name))
        _set(target, "beta_range_start", weight.beta_range[0])
        _set(target, "beta_range_end", weight.beta_range[1])
    else:
        target = message.arq_quantize
        if weight.num_bits != 8:
            target.quant_bits = weight.num_bits
    target.SetInParent()
    if block.channel_wise is not None:
        target.channel_wise = block.channel_wise
    if block.dmq_balancer_param is not None:
        message.dmq_balancer.SetInParent()
        _set(message.dmq_balancer, "migration_strength", block.dmq_balancer_param)


def shortest(value: float) -> float:
    """The decimal with the fewest digits that is ``value`` in float32: 0.7 stays 0.7."""
    return float(str(np.float32(value)))


def _activation_of(message: Any, algorithm: str) -> dict[str, Any]:
    descriptor = message.DESCRIPTOR.fields_by_name["dst_type"]
    type_name = descriptor.enum_type.values_by_number[message.dst_type].name
    result: dict[str, Any] = {"num_bits": _BITS_OF_TYPE[type_name]}
    if algorithm == "ifmr_quantize":
        start, end = message.search_range_start, message.search_range_end
        result |= {name: shortest(getattr(message, name)) for name in _IFMR_FLOATS}
        result |= {"search_range": [shortest(start), shortest(end)], "act_algo": "ifmr"}
    else:
        result |= {"num_of_bins": message.num_of_bins, "act_algo": "hfmg"}
    if message.HasField("asymmetric"):
        result["asymmetric"] = message.asymmetric
    return result


def _weight_of(message: Any, algorithm: str) -> dict[str, Any]:
    if algorithm == "ada_quantize":
        start, end = message.beta_range_start, message.beta_range_end
        return {
            "wts_algo": algorithm,
            "num_iteration": message.num_iteration,
            **{name: shortest(getattr(message, name)) for name in _ADA_FLOATS},
            "beta_range": [shortest(start), shortest(end)],
        }
    bits = message.quant_bits if message.HasField("quant_bits") else 8
    return {"wts_algo": algorithm, "num_bits": bits}


def _field_of(key: str, acts: str, wts: str) -> str:
    """The text format's name of a JSON key."""
    name = key.rpartition(".")[2]
    if name == "dmq_balancer_param":
        return "dmq_balancer.migration_strength"
    if name in ("search_range", "beta_range"):
        algorithm = acts if name == "search_range" else wts
        return f"{algorithm}.{name}_start, {name}_end"
    if key == f"{LAYER_FIELDS.weight}.num_bits":
        return f"{wts}.quant_bits"
    return f"{wts if key.startswith(LAYER_FIELDS.weight) else acts}.{name}"


def _set(message: Any, name: str, value: Any) -> None:
    default = message.DESCRIPTOR.fields_by_name[name].default_value
    if isinstance(value, float):
        if np.float32(value) != np.float32(default):
            setattr(message, name, value)
    elif value != default:
        setattr(message, name, value)
