"""What is known of module-level quantisation: formats by layer, profiles, the last result."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.studio.store import Store, put_meta

if TYPE_CHECKING:
    from workbench.engine.analysis.module_formats import LayerFormats
    from workbench.engine.analysis.module_layers import ChannelProfile, WeightError

FACTS = ("name", "type", "shape", "dtype")
MEASURED = ("minmax_db", "smoothquant_db", "outliers", "largest")
"""Columns of the table beside one per format: SQNR of the layer with int8 inputs and weights by
minmax and by smoothquant, channels that stand out, the largest channel ÷ the median one."""

FLOAT_TYPES = ("keep", "any", "bfloat16", "float16")
"""What becomes of the weights' float type: kept, kept and taken whatever it is, or cast."""


def graph_is_missing(store: Store, layers: pd.DataFrame) -> bool:
    """Whether the model runs, but cannot be captured: only its modules can be quantised.

    ``layers``: the table of what was captured.
    """
    figures = store.get("figures") or {}
    return layers.empty and figures.get("graph") is False


@dataclass(frozen=True)
class QuantizedLayer:
    """A line of the engine's report: what became of a layer, or why it stayed float."""

    name: str
    action: str
    algorithm: str
    formats: str
    reason: str
    note: str


@dataclass(frozen=True)
class QuantizedModel:
    """What the last ``quantize_modules`` measured and wrote.

    ``metric_calibrated``: before ``convert``, when layers answer with rounded numbers in float;
    ``metric_converted``: after it, on small codes. Bytes are those of the state dicts; ``folder``
    holds the tensors, ``config_path`` the ``configs`` and what became of each layer.
    """

    metric_float: float
    metric_calibrated: float
    metric_converted: float
    bytes_float: int
    bytes_converted: int
    float_type: str
    configs: tuple[Mapping[str, Any], ...]
    layers: tuple[QuantizedLayer, ...]
    folder: str
    config_path: str
    seconds: float

    @property
    def quantized(self) -> int:
        return sum(layer.action == "converted" for layer in self.layers)

    @property
    def left(self) -> tuple[QuantizedLayer, ...]:
        """Layers that stayed float."""
        return tuple(layer for layer in self.layers if layer.action == "float")


def no_formats() -> pd.DataFrame:
    return pd.DataFrame({column: pd.Series(dtype=object) for column in (*FACTS, *MEASURED)}).astype(
        dict.fromkeys(MEASURED, np.float64)
    )


def read_formats(value: Any) -> pd.DataFrame:
    """The table of the stored rows; empty before the first measurement."""
    if not value:
        return no_formats()
    table = pd.DataFrame(value)
    table["shape"] = [tuple(shape) for shape in table["shape"]]
    return table


def read_ways(value: Any) -> dict[str, str]:
    return {str(name): str(way) for name, way in (value or {}).items()}


def read_quantized(value: Any) -> QuantizedModel | None:
    if not value:
        return None
    layers = tuple(QuantizedLayer(**layer) for layer in value["layers"])
    return QuantizedModel(**{**value, "layers": layers, "configs": tuple(value["configs"])})


def format_columns(table: pd.DataFrame) -> tuple[str, ...]:
    """Short names of the formats that were measured."""
    return tuple(column for column in table.columns if column not in (*FACTS, *MEASURED))


def error_series(
    table: pd.DataFrame, formats: Sequence[str]
) -> Mapping[str, tuple[WeightError, ...]]:
    """Weight errors by format, as ``weight_error_chart`` takes them."""
    from workbench.engine.analysis.module_layers import WeightError

    return {
        key: tuple(
            WeightError(name, key, value)
            for name, value in zip(table["name"], table[key], strict=True)
            if math.isfinite(value)
        )
        for key in formats
        if key in table.columns
    }


def loudest(table: pd.DataFrame, most: int) -> list[str]:
    """The layers with the largest channels against their median one, in the model's order."""
    known = table[table["largest"].notna()]
    return [str(name) for name in known.nlargest(most, "largest").sort_index()["name"]]


def store_formats(store: Store, found: Sequence[LayerFormats]) -> None:
    """Keep a measurement in place of an earlier one."""
    rows = []
    profiles = []
    for layer in found:
        facts: dict[str, Any] = {
            "name": layer.name, "type": layer.kind, "shape": layer.shape, "dtype": layer.dtype,
            **layer.errors,
            "minmax_db": layer.minmax_db, "smoothquant_db": layer.smoothquant_db,
            "outliers": 0, "largest": math.nan,
        }  # fmt: skip
        profile = layer.profile
        if profile is not None:
            median = float(np.median(profile.activation))
            facts["outliers"] = len(profile.outliers)
            facts["largest"] = float(profile.activation.max()) / median if median else math.nan
            profiles.append((layer.name, _packed(profile)))
        rows.append(facts)
    with store.write() as connection:
        connection.execute("DELETE FROM profiles")
        connection.executemany("INSERT INTO profiles VALUES (?, ?)", profiles)
        put_meta(connection, {"formats": rows})


def stored_profiles(store: Store, names: Sequence[str]) -> tuple[ChannelProfile, ...]:
    """The input channels of those ``names`` that were measured, in their order."""
    marks = ", ".join("?" * len(names))
    rows = store.connection.execute(
        f"SELECT name, data FROM profiles WHERE name IN ({marks})", tuple(names)
    ).fetchall()
    data = dict(rows)
    return tuple(_unpacked(name, data[name]) for name in names if name in data)


def store_quantized(store: Store, result: QuantizedModel) -> None:
    store.put(quantized=json.loads(json.dumps(dataclasses.asdict(result))))


def _packed(profile: ChannelProfile) -> bytes:
    """As ``.npz``; read back without pickles."""
    arrays = {"activation": profile.activation, "weight": profile.weight}
    if profile.factors is not None:
        arrays["factors"] = profile.factors
    buffer = io.BytesIO()
    stored: Mapping[str, Any] = {key: value.astype(np.float32) for key, value in arrays.items()}
    np.savez(buffer, **stored)
    return buffer.getvalue()


def _unpacked(name: str, data: bytes) -> ChannelProfile:
    from workbench.engine.analysis.module_layers import ChannelProfile

    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        found = {key: arrays[key].astype(np.float64) for key in arrays}
    return ChannelProfile(name, found["activation"], found["weight"], found.get("factors"))
