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
        enabled = bool(columns["quant_enable"][row])
        changed[layer.name] = replace(
            entry, quant_enable=enabled, activation=activation, weight=weight
        )
    return replace(config, layers=changed)


def from_columns(layers: Sequence[LayerInfo], columns: Columns, batch_num: int) -> QuantConfig:
    base = base_config(layers, batch_num)
    return with_rows(base, layers, columns, range(len(layers)))


def columns_of(table: pd.DataFrame) -> dict[str, Any]:
    """The editable columns as plain lists, which are quicker to read cell by cell."""
    return {column: table[column].tolist() for column in EDITABLE}


def row_text(layer: LayerInfo, columns: Columns, row: int) -> str:
    """A layer's settings as one line; empty for a layer that stays float, whatever they are."""
    if not columns["quant_enable"][row]:
        return ""
    return "\t".join([layer.name, *(str(columns[column][row]) for column in SETTINGS)])


def hash_of(rows: Iterable[str], batch_num: int) -> str:
    text = "\n".join([str(batch_num), *filter(None, rows)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def config_hash(layers: Sequence[LayerInfo], columns: Columns, batch_num: int) -> str:
    """A short name for what is quantised and how: equal for equal results."""
    return hash_of((row_text(x, columns, i) for i, x in enumerate(layers)), batch_num)
