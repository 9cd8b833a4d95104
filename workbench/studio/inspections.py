"""What is known of single layers: their profile, and the ways to quantise them side by side."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.studio.measurements import settings_key, write_measurements
from workbench.studio.store import Store, put_meta

if TYPE_CHECKING:
    from workbench.engine.analysis.compare import Alternative
    from workbench.engine.analysis.profile import LayerProfile

_HISTOGRAM = "histogram."


@dataclass(frozen=True)
class Inspection:
    """One layer inspected with its ``settings`` of that moment (columns of the Layers table).

    ``time`` in seconds since the epoch; ``batches`` of ``batches_known`` were looked at;
    ``ada_iterations``: steps of learning that ADA was given, 0 when it was not tried.
    """

    name: str
    settings: Mapping[str, Any]
    alternatives: tuple[Alternative, ...]
    profile: LayerProfile
    batches: int
    batches_known: int
    ada_iterations: int
    time: float


def in_use(settings: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a row of the Layers table has these settings; baselines have none."""
    return bool(settings) and all(bool(row[key] == value) for key, value in settings.items())


def store_inspection(store: Store, inspection: Inspection) -> None:
    """Keep it, in place of an earlier one of the layer.

    What was measured of each way is what an analysis with these settings measures, so that the
    Layers table knows it at once when the way is used.
    """
    facts = {
        "settings": dict(inspection.settings),
        "alternatives": [_packed(one) for one in inspection.alternatives],
        "batches": inspection.batches,
        "batches_known": inspection.batches_known,
        "ada_iterations": inspection.ada_iterations,
    }
    now = time.time()
    known = store.get("inspected") or {}
    with store.write() as connection:
        connection.execute(
            "INSERT OR REPLACE INTO inspections VALUES (?, ?, ?, ?)",
            (inspection.name, now, json.dumps(facts), _arrays(inspection.profile)),
        )
        put_meta(connection, {"inspected": {**known, inspection.name: now}})
        for key, cosine, sqnr in _measured(inspection):
            rows = [(inspection.name, cosine, sqnr, math.nan)]
            write_measurements(connection, rows, {inspection.name: key})


def _measured(inspection: Inspection) -> Iterator[tuple[str, float, float]]:
    """(settings, cosine, SQNR) of the ways whose figures are those of the whole flow."""
    if inspection.batches < inspection.batches_known:
        return
    learned = inspection.settings.get("wts_algo") == "ada_quantize"
    for one in inspection.alternatives:
        # Learning takes as many steps as asked for here, another number in the configuration.
        if not one.settings or one.trouble or one.algorithm == "ada_quantize":
            continue
        if learned and "wts_algo" not in one.settings:
            continue
        merged: dict[str, Any] = {"wts_algo": "arq_quantize", "wts_bits": 8, "channel_wise": False}
        key = settings_key(**{**merged, **inspection.settings, **one.settings})
        yield key, one.cosine, one.sqnr_db


def stored_inspection(store: Store, name: str) -> Inspection | None:
    from workbench.engine.analysis.compare import Alternative

    row = store.connection.execute(
        "SELECT time, facts, data FROM inspections WHERE name = ?", (name,)
    ).fetchone()
    if row is None:
        return None
    facts = json.loads(row[1])
    return Inspection(
        name=name,
        settings=facts["settings"],
        alternatives=tuple(Alternative(**_unpacked(one)) for one in facts["alternatives"]),
        profile=_profile(row[2]),
        batches=int(facts["batches"]),
        batches_known=int(facts["batches_known"]),
        ada_iterations=int(facts["ada_iterations"]),
        time=float(row[0]),
    )


def _packed(one: Alternative) -> dict[str, Any]:
    """JSON has no NaN and no infinity: both become words."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in dataclasses.asdict(one).items()
    }


def _unpacked(facts: Mapping[str, Any]) -> dict[str, Any]:
    words = {"nan", "inf", "-inf"}
    return {
        key: float(value) if isinstance(value, str) and value in words else value
        for key, value in facts.items()
    }


def _arrays(profile: LayerProfile) -> bytes:
    """As ``.npz``; read back without pickles."""
    values: Mapping[str, Any] = {
        _HISTOGRAM + field.name: np.asarray(getattr(profile.histogram, field.name))
        for field in dataclasses.fields(profile.histogram)
    } | {
        field.name: np.asarray(getattr(profile, field.name))
        for field in dataclasses.fields(profile)
        if field.name != "histogram"
    }
    buffer = io.BytesIO()
    np.savez(buffer, **values)
    return buffer.getvalue()


def _profile(data: bytes) -> LayerProfile:
    from workbench.engine.analysis.histograms import LayerHistogram
    from workbench.engine.analysis.profile import LayerProfile

    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        values: dict[str, Any] = {
            key: arrays[key].item() if arrays[key].ndim == 0 else arrays[key] for key in arrays
        }
    own = {key: value for key, value in values.items() if not key.startswith(_HISTOGRAM)}
    rest = {
        key.removeprefix(_HISTOGRAM): value
        for key, value in values.items()
        if key.startswith(_HISTOGRAM)
    }
    return LayerProfile(histogram=LayerHistogram(**rest), **own)
