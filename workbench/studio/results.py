"""What jobs found out, read back from the store for a session."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.studio.formats_state import read_formats, read_quantized, read_ways
from workbench.studio.graph_names import KEY as GRAPH_NAMES
from workbench.studio.graph_names import as_graph_names
from workbench.studio.kept_weights import KEY as WEIGHTS
from workbench.studio.kept_weights import read_weights_kept
from workbench.studio.measuring import is_on, read_measuring
from workbench.studio.pins import as_pins
from workbench.studio.pruning_state import read_decomposition, read_pruning, read_shrunk
from workbench.studio.state import Change, ExportedFile, ExportResult, ParityLine, Summary
from workbench.studio.store import Cells, Store
from workbench.studio.variants import read_kept

if TYPE_CHECKING:
    from workbench.engine.analysis.histograms import LayerHistogram

TRIAL_COLUMNS = (
    "trial", "phase", "metric", "loss", "satisfied", "seconds", "n_float", "float_layers",
    "config_hash", "kind", "job", "share", "cached", "size", "bops",
    "settings",
)  # fmt: skip

META_KEYS = (
    "figures", "ranking", "bracket", "exports", "inspected", "pins", "formats", "ways", "quantized",
    "pruning", "decomposition", "shrunk", "origin", WEIGHTS, GRAPH_NAMES, "measuring", "background",
    "variants",
)  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One evaluated configuration. ``kind``: float, all, probe or final (calibrated for real).

    ``share`` of the samples was evaluated; ``cached``: known from an earlier run. ``size`` in
    bytes and ``bops``, bit-operations a sample, are NaN in projects of earlier versions.
    ``settings``: what differs from the generated configuration; None where it is not known.
    """

    id: int
    trial: int
    phase: str
    kind: str
    metric: float | None
    loss: float
    satisfied: bool
    seconds: float
    float_layers: tuple[str, ...]
    config_hash: str
    job: int = 0
    share: float = 1.0
    cached: bool = False
    size: float = math.nan
    bops: float = math.nan
    settings: Mapping[str, Mapping[str, Any]] | None = None


def new_trials(store: Store, after: int) -> list[Trial]:
    rows = store.connection.execute(
        "SELECT id, trial, phase, kind, metric, loss, satisfied, seconds, float_layers, "
        "config_hash, job, share, cached, size, bops, settings FROM trials "
        "WHERE id > ? ORDER BY id",
        (after,),
    ).fetchall()
    return [
        Trial(
            id=row[0],
            trial=row[1],
            phase=row[2],
            kind=row[3],
            metric=row[4],
            loss=float("nan") if row[5] is None else float(row[5]),
            satisfied=bool(row[6]),
            seconds=float(row[7] or 0.0),
            float_layers=tuple(json.loads(row[8])),
            config_hash=row[9],
            job=int(row[10] or 0),
            share=float(row[11]),
            cached=bool(row[12]),
            size=math.nan if row[13] is None else float(row[13]),
            bops=math.nan if row[14] is None else float(row[14]),
            settings=None if row[15] is None else dict(json.loads(row[15])),
        )
        for row in rows
    ]


def no_trials() -> pd.DataFrame:
    return pd.DataFrame({column: pd.Series(dtype=object) for column in TRIAL_COLUMNS}).astype(
        {
            "trial": np.int64,
            "metric": np.float64,
            "loss": np.float64,
            "satisfied": bool,
            "seconds": np.float64,
            "n_float": np.int64,
            "job": np.int64,
            "share": np.float64,
            "cached": bool,
            "size": np.float64,
            "bops": np.float64,
        }
    )


def with_trials(table: pd.DataFrame, trials: Sequence[Trial]) -> pd.DataFrame:
    rows = pd.DataFrame(
        [
            (
                t.trial, t.phase, math.nan if t.metric is None else t.metric, t.loss, t.satisfied,
                t.seconds, len(t.float_layers), t.float_layers, t.config_hash, t.kind,
                t.job, t.share, t.cached, t.size, t.bops, t.settings,
            )
            for t in trials
        ],
        columns=list(TRIAL_COLUMNS),
    )  # fmt: skip
    return rows if table.empty else pd.concat([table, rows], ignore_index=True)


def changed_meta(store: Store, seen: dict[str, str]) -> dict[str, Any]:
    """Values among ``META_KEYS`` that changed since the texts in ``seen``, which it updates."""
    marks = ", ".join("?" * len(META_KEYS))
    rows = store.connection.execute(
        f"SELECT key, value FROM meta WHERE key IN ({marks})", META_KEYS
    ).fetchall()
    changed: dict[str, Any] = {}
    for key, text in rows:
        if seen.get(key) != text:
            seen[key] = text
            value = json.loads(text)
            changed[key] = read_pruning(store, value) if key == "pruning" else _READERS[key](value)
    return changed


def read_exports(value: Any) -> ExportResult | None:
    if value is None:
        return None
    return ExportResult(
        files=tuple(
            ExportedFile(**file) for file in value["files"] if str(file["path"]).endswith(".onnx")
        ),
        parity=tuple(ParityLine(**line) for line in value["parity"]),
        method=str(value.get("method", "ptq")),
    )


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "figures": lambda value: value or {},
    "ranking": lambda value: tuple(value or ()),
    "inspected": lambda value: value or {},
    "bracket": lambda value: None if value is None else (int(value[0]), int(value[1])),
    "exports": read_exports,
    "pins": as_pins,
    GRAPH_NAMES: as_graph_names,
    "formats": read_formats,
    "ways": read_ways,
    "quantized": read_quantized,
    "decomposition": read_decomposition,
    "shrunk": read_shrunk,
    "origin": read_shrunk,
    WEIGHTS: read_weights_kept,
    "measuring": read_measuring,
    "background": is_on,
    "variants": read_kept,
}


def merged_change(batches: Sequence[Cells], revision: int) -> Change:
    """All batches as one change if they concern one column, else "everything may have changed"."""
    columns = {column for cells in batches for column in cells}
    if len(columns) != 1:
        return Change("", (), (), revision)
    (column,) = columns
    merged: dict[int, Any] = {}
    for cells in batches:
        merged.update(zip(*cells[column], strict=True))
    rows = tuple(sorted(merged))
    return Change(column, rows, tuple(merged[row] for row in rows), revision)


def same_summary(one: Summary, other: Summary) -> bool:
    """Equal, where NaN equals NaN."""
    pairs = zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True)
    return all(a == b or (a != a and b != b) for a, b in pairs)


# -- histograms -----------------------------------------------------------------------------------


def pack_histogram(histogram: LayerHistogram) -> bytes:
    """As ``.npz``; read back without pickles."""
    fields: Mapping[str, Any] = {
        field.name: np.asarray(getattr(histogram, field.name))
        for field in dataclasses.fields(histogram)
    }
    buffer = io.BytesIO()
    np.savez(buffer, **fields)
    return buffer.getvalue()


def stored_histogram(store: Store, name: str) -> LayerHistogram | None:
    from workbench.engine.analysis.histograms import LayerHistogram

    row = store.connection.execute("SELECT data FROM histograms WHERE name = ?", (name,)).fetchone()
    if row is None:
        return None
    with np.load(io.BytesIO(row[0]), allow_pickle=False) as arrays:
        values = {
            key: arrays[key].item() if arrays[key].ndim == 0 else arrays[key] for key in arrays
        }
    return LayerHistogram(**values)


def store_histogram(store: Store, histogram: LayerHistogram, config_hash: str) -> None:
    data = pack_histogram(histogram)
    with store.write() as connection:
        connection.execute(
            "INSERT INTO histograms (name, config_hash, data) VALUES (?, ?, ?) ON CONFLICT (name) "
            "DO UPDATE SET data = excluded.data, config_hash = excluded.config_hash",
            (histogram.name, config_hash, data),
        )
        connection.execute("DELETE FROM requests WHERE name = ?", (histogram.name,))
