"""Named variants of the configuration, as the project keeps them.

A variant holds every editable column of every layer, by the layers' names, and how layers are
quantised as modules where that was chosen. The table ``variants``
has them; the meta key ``variants`` has their names and times, so that windows learn of changes.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.charts.text import N_
from workbench.engine.errors import WorkbenchError, WrongType, WrongValue
from workbench.engine.graph.layers import LayerInfo
from workbench.studio.columns import (
    DEFAULT_RATIO,
    EDITABLE,
    checked,
    refusal,
    trainable,
    without_training,
)
from workbench.studio.format_choices import ANY, check_way
from workbench.studio.ptq import generated_columns
from workbench.studio.source_spec import SourceSpec
from workbench.studio.store import Store, put_meta

KEY = "variants"
MOST = 100
LONGEST = 80
OTHER_MODEL = N_("Delete it, or open the model it was made for.")
SAID = 5
"""So many problems of a variant are named."""


@dataclass(frozen=True)
class KeptVariant:
    """A variant's name, and when it was saved, in seconds since the epoch."""

    name: str
    time: float


@dataclass(frozen=True)
class Variant:
    """``columns``: for every editable column the values of ``layers``, in their order.

    ``ways``: the chosen ways to quantise modules, by layer; None in a variant of an older version.
    """

    name: str
    time: float
    layers: tuple[str, ...]
    columns: Mapping[str, tuple[Any, ...]]
    ways: Mapping[str, str] | None = None


def read_kept(value: Any) -> tuple[KeptVariant, ...]:
    """The names and times in the meta key, checked: a project may come from anywhere."""
    try:
        return tuple(KeptVariant(str(name), float(when)) for name, when in value or ())
    except (TypeError, ValueError):
        return ()


def checked_name(name: Any) -> str:
    """The name without spaces around it; raises if it cannot be one."""
    if not isinstance(name, str):
        raise WrongType(f"the name is {name!r}; it must be text", where="variants")
    text = name.strip()
    if not text or len(text) > LONGEST or not text.isprintable():
        raise WrongValue(
            f"{text[:LONGEST]!r} cannot be the name of a variant",
            where="variants",
            hint=f"Allowed: 1 to {LONGEST} printable characters.",
        )
    return text


def save_variant(
    store: Store,
    name: str,
    layers: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    ways: Mapping[str, str],
    overwrite: bool,
) -> None:
    """Keep a variant, whole or not at all.

    Errors: ``WrongValue`` for a name that is taken, unless ``overwrite``, or for one too many.
    """
    facts = {
        "layers": list(layers),
        "columns": {column: list(columns[column]) for column in EDITABLE},
        "ways": dict(ways),
    }
    with store.write() as connection:
        if _exists(connection, name) and not overwrite:
            raise WrongValue(
                f"there is a variant {name!r} already",
                where="variants",
                hint="Choose another name, or overwrite it.",
            )
        count = int(connection.execute("SELECT count(*) FROM variants").fetchone()[0])
        if count >= MOST and not _exists(connection, name):
            raise WrongValue(
                f"the project has {count} variants, which is the most it keeps",
                where="variants",
                hint="Delete one of them first.",
            )
        connection.execute(
            "INSERT OR REPLACE INTO variants VALUES (?, ?, ?)",
            (name, time.time(), json.dumps(facts)),
        )
        _publish(connection)


def rename_variant(store: Store, old: str, new: str) -> None:
    """Errors: ``WrongValue`` for an unknown name and for one that is taken."""
    with store.write() as connection:
        _require(connection, old)
        if old != new and _exists(connection, new):
            raise WrongValue(
                f"there is a variant {new!r} already", where="variants", hint="Choose another name."
            )
        connection.execute("UPDATE variants SET name = ? WHERE name = ?", (new, old))
        _publish(connection)


def delete_variant(store: Store, name: str) -> None:
    """Take a variant away for good; the configuration stays as it is."""
    with store.write() as connection:
        _require(connection, name)
        connection.execute("DELETE FROM variants WHERE name = ?", (name,))
        _publish(connection)


def read_variant(
    store: Store, name: str, layers: Sequence[LayerInfo], source: SourceSpec
) -> Variant:
    """A variant, checked against the project's layers and source; values as ``layers`` are.

    Errors: ``WrongValue`` for an unknown name, for a variant of other layers, and for values that
    these layers do not allow, all of them in one message.
    """
    _require(store.connection, name)
    row_time, text = store.connection.execute(
        "SELECT time, facts FROM variants WHERE name = ?", (name,)
    ).fetchone()
    try:
        facts = json.loads(text)
        own = [str(layer) for layer in facts["layers"]]
        written = {column: list(facts["columns"][column]) for column in EDITABLE}
        given = without_training(written, source)
        ways = None if facts.get("ways") is None else dict(facts["ways"])
        if any(len(values) != len(own) for values in given.values()):
            raise ValueError("columns of different lengths")
    except (TypeError, KeyError, ValueError) as error:
        raise WrongValue(
            f"the variant {name!r} cannot be read ({error})",
            where="project.sqlite",
            hint="Delete it, or restore the file from a copy.",
        ) from error
    _require_same_layers(name, own, [layer.name for layer in layers])
    place = {layer: row for row, layer in enumerate(own)}
    usual = usual_columns(layers, source)
    columns: dict[str, tuple[Any, ...]] = {}
    problems: list[str] = []
    for column in EDITABLE:
        found = []
        for row, layer in enumerate(layers):
            value = given[column][place[layer.name]]
            try:
                value = checked(column, value)
                reason = (
                    "" if value == usual[column][row] else refusal(layer, column, value, source)
                )
            except WorkbenchError as error:
                reason = f"{column}: {error.message}"
            if reason:
                problems.append(f"{layer.name}: {reason}")
            found.append(value)
        columns[column] = tuple(found)
    problems += _wrong_ways(ways or {}, layers)
    if problems:
        said = "; ".join(problems[:SAID])
        raise WrongValue(
            f"the variant {name!r} does not fit these layers in {len(problems)} places: {said}",
            where="variants",
            hint=OTHER_MODEL,
        )
    return Variant(name, float(row_time), tuple(layer.name for layer in layers), columns, ways)


def _wrong_ways(ways: Mapping[Any, Any], layers: Sequence[LayerInfo]) -> list[str]:
    """What of the ways is unknown or does not take its layer; modules may lie outside a graph."""
    kinds = {layer.name: layer.type for layer in layers}
    found = []
    for name, way in ways.items():
        try:
            check_way(str(name), kinds.get(name, ANY), way)
        except WorkbenchError as error:
            found.append(f"{name}: {error.message}")
    return found


def usual_columns(layers: Sequence[LayerInfo], source: SourceSpec) -> dict[str, list[Any]]:
    """The configuration of a project that nobody has edited, by column and row."""
    return {
        **generated_columns(layers),
        "quant_enable": [layer.eligible for layer in layers],
        "retrain_enable": [trainable(layer, source) for layer in layers],
        "prune_enable": [False] * len(layers),
        "prune_ratio": [DEFAULT_RATIO] * len(layers),
    }


def _require_same_layers(name: str, own: Sequence[str], layers: Sequence[str]) -> None:
    """Raise ``WrongValue`` unless the variant speaks of exactly these layers."""
    missing = [layer for layer in own if layer not in set(layers)]
    new = [layer for layer in layers if layer not in set(own)]
    if not missing and not new:
        return
    gone, more = _some(missing), _some(new)
    if missing and new:
        raise WrongValue(
            f"the variant {name!r} was made for other layers: {len(missing)} of its layers are not "
            f"in this model ({gone}), and {len(new)} layers of this model are not in it ({more})",
            where="variants",
            hint=OTHER_MODEL,
        )
    if missing:
        raise WrongValue(
            f"the variant {name!r} was made for other layers: {len(missing)} of its layers are not "
            f"in this model ({gone})",
            where="variants",
            hint=OTHER_MODEL,
        )
    raise WrongValue(
        f"the variant {name!r} was made for other layers: {len(new)} layers of this model are not "
        f"in it ({more})",
        where="variants",
        hint=OTHER_MODEL,
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:SAID], *(["…"] if len(names) > SAID else [])])


def _exists(connection: sqlite3.Connection, name: str) -> bool:
    row = connection.execute("SELECT 1 FROM variants WHERE name = ?", (name,)).fetchone()
    return row is not None


def _require(connection: sqlite3.Connection, name: str) -> None:
    if not _exists(connection, name):
        rows = connection.execute("SELECT name FROM variants ORDER BY time, name").fetchall()
        known = ", ".join(repr(row[0]) for row in rows) or "none yet"
        raise WrongValue(
            f"there is no variant {name!r}", where="variants", hint=f"Variants here: {known}."
        )


def _publish(connection: sqlite3.Connection) -> None:
    rows = connection.execute("SELECT name, time FROM variants ORDER BY time, name").fetchall()
    put_meta(connection, {KEY: [list(row) for row in rows]})
