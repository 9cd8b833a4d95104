"""The stored configuration as the exact ``QuantConfig`` of chapter 10, and its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from workbench.engine.files.config import LayerConfig, QuantConfig, default_config
from workbench.engine.graph.layers import LayerInfo
from workbench.studio.columns import EDITABLE
from workbench.studio.table import SETTINGS

Columns = Mapping[str, Sequence[Any]]


def base_config(layers: Sequence[LayerInfo], batch_num: int) -> QuantConfig:
    """The generated configuration that the project's edits start from."""
    return default_config({layer.name: layer for layer in layers}, batch_num=batch_num)


def with_rows(
    config: QuantConfig, layers: Sequence[LayerInfo], columns: Columns, rows: Sequence[int]
) -> QuantConfig:
    """``config`` with the settings of ``rows`` taken from ``columns``."""
    changed: dict[str, LayerConfig] = dict(config.layers)
    for row in rows:
        layer = layers[row]
        entry = changed.get(layer.name)
        if entry is None:
            continue
        activation = entry.activation
        act = (int(columns["act_bits"][row]), str(columns["act_algo"][row]))
        if (activation.num_bits, activation.act_algo) != act:
            activation = replace(activation, num_bits=act[0], act_algo=act[1])
        weight = entry.weight
        if weight is not None:
            new = (
                int(columns["wts_bits"][row]),
                str(columns["wts_algo"][row]),
                bool(columns["channel_wise"][row]),
            )
            if (weight.num_bits, weight.wts_algo, weight.channel_wise) != new:
                weight = replace(weight, num_bits=new[0], wts_algo=new[1], channel_wise=new[2])
        changed[layer.name] = replace(
            entry,
            quant_enable=bool(columns["quant_enable"][row]),
            activation=activation,
            weight=weight,
            dmq_balancer_param=float(columns["dmq"][row]) or None,
        )
    return replace(config, layers=changed)


def generated_columns(layers: Sequence[LayerInfo]) -> dict[str, list[Any]]:
    """The settings that a generated configuration has, by column and row."""
    count = len(layers)
    return {
        "act_algo": ["ifmr"] * count,
        "wts_algo": ["arq_quantize"] * count,
        "channel_wise": [layer.eligible and layer.channel_wise for layer in layers],
        "act_bits": [8] * count,
        "wts_bits": [8] * count,
        "dmq": [0.0] * count,
    }


def changed_settings(layers: Sequence[LayerInfo], columns: Columns) -> dict[str, dict[str, Any]]:
    """Layer to column to value, where it is not as generated."""
    generated = generated_columns(layers)
    found: dict[str, dict[str, Any]] = {}
    for row, layer in enumerate(layers):
        for column in SETTINGS if layer.eligible else ():
            if columns[column][row] != generated[column][row]:
                found.setdefault(layer.name, {})[column] = columns[column][row]
    return found


def from_columns(layers: Sequence[LayerInfo], columns: Columns, batch_num: int) -> QuantConfig:
    base = base_config(layers, batch_num)
    return with_rows(base, layers, columns, range(len(layers)))


def to_columns(
    config: QuantConfig, layers: Sequence[LayerInfo], columns: Columns
) -> dict[str, list[Any]]:
    """``columns`` with what ``config`` says; layers that it does not name keep their settings."""
    result = {column: list(values) for column, values in columns.items()}
    for row, layer in enumerate(layers):
        entry = config.layers.get(layer.name)
        result["quant_enable"][row] = entry is not None and entry.quant_enable
        if entry is None:
            continue
        result["act_bits"][row] = entry.activation.num_bits
        result["act_algo"][row] = entry.activation.act_algo
        if entry.weight is not None:
            result["wts_bits"][row] = entry.weight.num_bits
            result["wts_algo"][row] = entry.weight.wts_algo
            result["channel_wise"][row] = entry.weight.channel_wise
    return result


def columns_of(table: pd.DataFrame) -> dict[str, Any]:
    """The editable columns as plain lists, which are quicker to read cell by cell."""
    return {column: table[column].tolist() for column in EDITABLE}


def row_text(layer: LayerInfo, columns: Columns, row: int) -> str:
    """A layer's settings as one line; empty for a layer that stays float, whatever they are."""
    if not columns["quant_enable"][row]:
        return ""
    settings = [str(columns[column][row]) for column in SETTINGS if column != "dmq"]
    # Without a balancer the text, and with it the hash, is that of projects before there was one.
    balancer = [f"dmq {columns['dmq'][row]}"] if columns["dmq"][row] else []
    return "\t".join([layer.name, *settings, *balancer])


def hash_of(rows: Iterable[str], batch_num: int) -> str:
    text = "\n".join([str(batch_num), *filter(None, rows)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def config_hash(layers: Sequence[LayerInfo], columns: Columns, batch_num: int) -> str:
    """A short name for what is quantised and how: equal for equal results."""
    return hash_of((row_text(x, columns, i) for i, x in enumerate(layers)), batch_num)
