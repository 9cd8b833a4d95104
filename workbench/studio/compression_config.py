"""The text configuration of a sparse or combined training, made of the Layers table.

Source: specification chapter 30 sections 3.2 and 11.3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from workbench.engine.errors import WrongState, WrongValue
from workbench.engine.files.proto_schema import message_class
from workbench.engine.files.prune_config import (
    CHANNEL,
    SELECTIVE,
    PruneLayer,
    configures_quantisation,
)
from workbench.engine.files.retrain_config import default_weight
from workbench.engine.files.retrain_text import load_retrain_text_config
from workbench.engine.graph.layers import LayerInfo
from workbench.studio.qat import ACTIVATION_TYPES, weight_type
from workbench.studio.training_state import SPARSITIES

Columns = Mapping[str, Sequence[Any]]

_MODES = {"2:4": SELECTIVE, "channels": CHANNEL}


@dataclass(frozen=True)
class Compression:
    """What a training does to its layers besides training them.

    ``sparsity``: '2:4' keeps two of every four weights, 'channels' removes ``prune_ratio`` of every
    layer's output channels, 'none'. ``update_freq``: steps between two choices of the 2:4 masks, 0:
    chosen once. ``ascend_optimized``: channels that stay are rounded up to multiples of 16.
    ``quantise``: the layers that are ticked for training get quantisers.
    """

    sparsity: str = "2:4"
    update_freq: int = 0
    prune_ratio: float = 0.2
    ascend_optimized: bool = True
    quantise: bool = True

    def __post_init__(self) -> None:
        problems = []
        if self.sparsity not in SPARSITIES:
            problems.append(f"sparsity is {self.sparsity!r}; allowed: {', '.join(SPARSITIES)}")
        freq = self.update_freq
        if isinstance(freq, bool) or not isinstance(freq, int) or not 0 <= freq < 2**32:
            problems.append(f"update_freq is {freq!r}; allowed: a whole number of at least 0")
        ratio = self.prune_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1:
            problems.append(f"prune_ratio is {ratio!r}; allowed: a number between 0 and 1")
        problems += [
            f"{name} is {getattr(self, name)!r}; allowed: True, False"
            for name in ("ascend_optimized", "quantise")
            if not isinstance(getattr(self, name), bool)
        ]
        if not problems and self.sparsity == "none" and not self.quantise:
            problems.append("sparsity is 'none' and quantise False; allowed: one of the two")
        if problems:
            raise WrongValue("; ".join(problems), where="train", hint="Correct these arguments.")


def compression_for(method: str, values: Mapping[str, Any]) -> Compression:
    """What a training by ``method`` was asked for; 'sparse' is 2:4 sparsity alone.

    Errors: ``WrongValue`` for values that are not allowed or that the method does not take.
    """
    taken = [field.name for field in fields(Compression)] if method == "compressed" else []
    taken = ["update_freq"] if method == "sparse" else taken
    unknown = [name for name in values if name not in taken]
    if unknown:
        allowed = f"takes {', '.join(taken)}" if taken else "takes none of these"
        raise WrongValue(
            f"{method} takes no {', '.join(unknown)}",
            where="train",
            hint=f"The method {method!r} {allowed}.",
        )
    alone = {"sparsity": "2:4", "quantise": False} if method == "sparse" else {}
    return Compression(**{**values, **alone})


def read_compression(path: Path) -> Compression:
    """What the configuration in a file is about; ratios and frequencies are those for all layers.

    Errors: those of ``load_retrain_text_config``.
    """
    message = load_retrain_text_config(path)
    mode = message.prune_config.WhichOneof("regular_prune_strategy")
    sparsity = {SELECTIVE: "2:4", CHANNEL: "channels"}.get(mode, "none")
    return Compression(sparsity, quantise=configures_quantisation(message))


@dataclass(frozen=True)
class _Quant:
    """How one layer is quantised."""

    data: str
    weight: str
    channel_wise: bool


def chosen_for_pruning(
    order: Sequence[LayerInfo], columns: Columns, *, ratio: float
) -> dict[str, float]:
    """Layer -> ratio, for the rows whose ``prune_enable`` is on; ``ratio`` for all if none is."""
    ticked = columns["prune_enable"]
    if not any(ticked):
        return {layer.name: ratio for layer in order}
    ratios = columns["prune_ratio"]
    return {layer.name: float(ratios[row]) for row, layer in enumerate(order) if ticked[row]}


def compression_text(
    wanted: Compression,
    order: Sequence[LayerInfo],
    columns: Columns,
    *,
    trainable: Mapping[str, LayerInfo],
    prunable: Mapping[str, PruneLayer],
    batch_num: int,
) -> str:
    """The ``AMCTRetrainConfig`` of the Layers table, as protobuf text.

    ``order``: the layers of the table's rows. What most layers have is said once for all of them;
    others get an override or stand in a skip list. Errors: ``WrongState`` when nothing is left to
    quantise or to prune.
    """
    message = message_class("retrain_config_pytorch.proto", "AMCTPytorchProto.AMCTRetrainConfig")()
    message.batch_num = batch_num
    overrides: dict[str, Any] = {}

    def override(name: str) -> Any:
        if name not in overrides:
            overrides[name] = message.override_layer_configs.add(layer_name=name)
        return overrides[name]

    if wanted.quantise:
        _quantise(message, override, order, columns, trainable)
    if wanted.sparsity != "none":
        chosen = chosen_for_pruning(order, columns, ratio=wanted.prune_ratio)
        _prune(message, override, wanted, chosen, prunable)
    text: str = text_format.MessageToString(message)
    return text


def _quantise(
    message: Any, override: Any, order: Sequence[LayerInfo], columns: Columns,
    trainable: Mapping[str, LayerInfo],
) -> None:  # fmt: skip
    wanted: dict[str, _Quant] = {}
    skipped = []
    for row, layer in enumerate(order):
        info = trainable.get(layer.name)
        if info is None or not info.eligible:
            continue
        if not columns["retrain_enable"][row]:
            skipped.append(layer.name)
            continue
        bits = int(columns["act_bits"][row])
        per_channel = bool(columns["channel_wise"][row]) and default_weight(info).channel_wise
        kind = weight_type(bits, int(columns["wts_bits"][row]))
        wanted[layer.name] = _Quant(ACTIVATION_TYPES[bits], kind, per_channel)
    if not wanted:
        raise WrongState(
            "retrain_enable is off for every layer, so there is nothing to quantise",
            where="configuration",
            hint="Tick 'train' for at least one layer in Layers, or train without quantisation.",
        )
    ((common, _),) = Counter(wanted.values()).most_common(1)
    _fill(message, common)
    types: dict[str, _Quant] = {}
    for kind in dict.fromkeys(trainable[name].type for name in wanted):
        usual = Counter(w for n, w in wanted.items() if trainable[n].type == kind)
        ((types[kind], _),) = usual.most_common(1)
        if types[kind] != common:
            _fill(message.override_layer_types.add(layer_type=kind), types[kind])
    for name, quant in wanted.items():
        if quant != types[trainable[name].type]:
            _fill(override(name), quant)
    message.quant_skip_layers.extend(skipped)


def _fill(block: Any, quant: _Quant) -> None:
    types = type(block.retrain_data_quant_config.ulq_quantize)
    numbers = types.DESCRIPTOR.fields_by_name["dst_type"].enum_type.values_by_name
    block.retrain_data_quant_config.ulq_quantize.dst_type = numbers[quant.data].number
    weight = block.retrain_weight_quant_config.arq_retrain
    weight.dst_type = numbers[quant.weight].number
    weight.channel_wise = quant.channel_wise


def _prune(
    message: Any, override: Any, wanted: Compression, chosen: Mapping[str, float],
    prunable: Mapping[str, PruneLayer],
) -> None:  # fmt: skip
    mode = _MODES[wanted.sparsity]
    able = [name for name, layer in prunable.items() if not layer.obstacle(mode)]
    if not any(name in chosen for name in able):
        raise WrongState(
            "none of the layers that are ticked for pruning can be pruned",
            where="configuration",
            hint="Tick others in Layers (column “prune”), or none: then all that can be.",
        )
    if mode == SELECTIVE:
        pruner = message.prune_config.n_out_of_m_pruner.l1_selective_prune
        pruner.update_freq = wanted.update_freq
    else:
        ratios = {name: chosen[name] for name in able if name in chosen}
        ((common, _),) = Counter(ratios.values()).most_common(1)
        _ratio(message.prune_config, common, wanted)
        for name, ratio in ratios.items():
            if ratio != common:
                _ratio(override(name).prune_config, ratio, wanted)
    message.regular_prune_skip_layers.extend(name for name in able if name not in chosen)


def _ratio(block: Any, ratio: float, wanted: Compression) -> None:
    pruner = block.filter_pruner.balanced_l2_norm_filter_prune
    pruner.prune_ratio = ratio
    pruner.ascend_optimized = wanted.ascend_optimized
