"""The Layers table as a DataFrame, built from the store's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.engine.graph.layers import LayerInfo
from workbench.studio.columns import COLUMNS, EDITABLE, NUMBERS
from workbench.studio.measurements import Measurement, settings_key
from workbench.studio.pruning_state import PruningState, mean_sensitivity
from workbench.studio.store import BOOLEAN, Cells

Measured = Mapping[tuple[str, str], Measurement]
"""Layer and settings to what was measured with them."""

SETTINGS = ("act_algo", "wts_algo", "channel_wise", "act_bits", "wts_bits", "dmq")
"""Columns that a measurement depends on, in the order of ``settings_key``."""


def build_table(
    layers: Sequence[LayerInfo],
    configuration: Mapping[str, Sequence[Any]],
    weight_ranges: Sequence[float | None],
    measured: Measured,
    pins: Mapping[str, bool],
) -> pd.DataFrame:
    """All columns of the Layers table, in execution order."""
    total_macs = sum(layer.macs for layer in layers) or 1
    nan = np.full(len(layers), np.nan)
    data: dict[str, Any] = {
        "name": [layer.name for layer in layers],
        "type": [layer.type for layer in layers],
        "shape": ["×".join(map(str, layer.weight_shape)) for layer in layers],
        "parameters": np.array([layer.parameters for layer in layers], dtype=np.int64),
        "macs": np.array([layer.macs for layer in layers], dtype=np.int64),
        "mac_share": np.array([layer.macs / total_macs for layer in layers], dtype=np.float64),
        "eligible": np.array([layer.eligible for layer in layers], dtype=bool),
        "reason": [layer.reason for layer in layers],
    }
    for column in EDITABLE:
        data[column] = _column_array(column, configuration[column])
    for column in ("cosine", "error", "sqnr", "accumulated_error"):
        data[column] = nan.copy()
    data["weight_range"] = np.array(
        [np.nan if value is None else value for value in weight_ranges], dtype=np.float64
    )
    data["prune_sensitivity"] = nan.copy()
    data["state"] = _states(data["eligible"], data["quant_enable"])
    data["pin"] = ""
    table = with_pins(pd.DataFrame(data, columns=list(COLUMNS)), pins)
    return with_measurements(table, measured)


def with_cells(table: pd.DataFrame, cells: Cells) -> pd.DataFrame:
    """A new table in which ``cells`` have their new values; the given one is left alone."""
    new: dict[str, Any] = {}
    for column, (rows, values) in cells.items():
        array = table[column].to_numpy(copy=True)
        array[list(rows)] = values
        new[column] = array
    if "quant_enable" in new:
        new["state"] = _states(table["eligible"].to_numpy(), new["quant_enable"])
    return table.assign(**new)


def with_pins(table: pd.DataFrame, pins: Mapping[str, bool]) -> pd.DataFrame:
    """A new table whose column ``pin`` is "quantised", "float" or, where nothing is held, ""."""
    words = {True: "quantised", False: "float", None: ""}
    pinned = [words[pins.get(str(name))] for name in table["name"]]
    return table.assign(pin=np.array(pinned, dtype=object))


def with_sensitivity(table: pd.DataFrame, pruning: PruningState | None) -> pd.DataFrame:
    """A new table whose column ``prune_sensitivity`` is the mean of each layer's channels."""
    if table.empty:
        return table
    known = mean_sensitivity(pruning)
    values = [known.get(str(name), np.nan) for name in table["name"]]
    return table.assign(prune_sensitivity=np.array(values, dtype=np.float64))


def with_measurements(
    table: pd.DataFrame, measured: Measured, rows: Sequence[int] | None = None
) -> pd.DataFrame:
    """A new table whose measured columns hold what was measured with each layer's settings.

    ``rows`` limits the work to these rows; a layer whose settings were never measured gets NaN.
    """
    if table.empty or (rows is None and not measured):
        return table
    cosine = table["cosine"].to_numpy(copy=True)
    sqnr = table["sqnr"].to_numpy(copy=True)
    accumulated = table["accumulated_error"].to_numpy(copy=True)
    names = table["name"].to_numpy()
    parts = [table[column].to_numpy() for column in SETTINGS]
    for row in range(len(table)) if rows is None else rows:
        found = measured.get((names[row], settings_key(*(part[row] for part in parts))))
        cosine[row] = np.nan if found is None else found.cosine
        sqnr[row] = np.nan if found is None else found.sqnr
        accumulated[row] = np.nan if found is None else max(1.0 - found.accumulated, 0.0)
    return table.assign(
        cosine=cosine,
        error=np.maximum(1.0 - cosine, 0.0),
        sqnr=sqnr,
        accumulated_error=accumulated,
    )


def _column_array(column: str, values: Sequence[Any]) -> Any:
    if column in BOOLEAN:
        return np.array(values, dtype=bool)
    if column.endswith("_bits"):
        return np.array(values, dtype=np.int64)
    return np.array(values, dtype=np.float64 if column in NUMBERS else object)


def _states(eligible: Any, quantized: Any) -> Any:
    states = np.where(quantized, "quantised", "skipped").astype(object)
    states[~np.asarray(eligible, dtype=bool)] = "ineligible"
    return states
