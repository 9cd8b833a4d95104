"""Edits of the configuration: compare and swap per cell, one undo stack per project."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.studio.columns import EDITABLE
from workbench.studio.store import BOOLEAN, Cells, Store, put_meta

UNDO_DEPTH = 1000
WAYS = "ways"
"""Where the ways to quantise modules are kept; in an edit they are by layer name, not by row."""


@dataclass(frozen=True)
class CellEdit:
    """Set ``rows`` of ``column`` from what the window ``seen`` to ``values``."""

    column: str
    rows: tuple[int, ...]
    seen: tuple[Any, ...]
    values: tuple[Any, ...]


@dataclass(frozen=True)
class EditResult:
    """``overtaken`` cells were changed by another window in the meantime and were left alone."""

    revision: int
    applied: int
    overtaken: int


def apply_edit(
    store: Store,
    edits: Sequence[CellEdit],
    *,
    label: str,
    base_revision: int,
    ways: Mapping[str, str | None] | None = None,
) -> EditResult:
    """Apply one undoable edit in one transaction.

    ``ways``: how layers are quantised as modules from now on; None is the default way.

    Changes that other windows made since ``base_revision`` are kept: where such a change touched
    the same cell and wants something else, ours gives way and is counted as overtaken.
    """
    overtaken = 0
    with store.write() as connection:
        revision = _revision(connection)
        stale = revision != base_revision
        done: dict[str, list[list[Any]]] = {}
        for edit in edits:
            column = _column(edit.column)
            current = _values(connection, column, edit.rows)
            rows: list[int] = []
            old: list[Any] = []
            new: list[Any] = []
            for row, seen, value, now in zip(
                edit.rows, edit.seen, edit.values, current, strict=True
            ):
                if now == value:
                    continue
                if stale and now != seen:
                    overtaken += 1
                    continue
                rows.append(row)
                old.append(now)
                new.append(value)
            if rows:
                done[column] = [rows, old, new]
        moved = _move_ways(connection, ways or {})
        if not done and not moved:
            return EditResult(revision, 0, overtaken)
        for column, (rows, _, new) in done.items():
            _set(connection, column, rows, new)
        if done:
            cells = {c: (tuple(r), tuple(n)) for c, (r, _, n) in done.items()}
            revision = _commit(connection, cells)
        _remember(connection, label, {**done, **moved})
        return EditResult(revision, sum(len(rows) for rows, _, _ in done.values()), overtaken)


def choose_ways(store: Store, chosen: Mapping[str, str], *, label: str) -> None:
    """Quantise layers as modules in other ways, as one undoable edit; other layers keep theirs."""
    with store.write() as connection:
        moved = _move_ways(connection, chosen)
        if moved:
            _remember(connection, label, moved)


def undo(store: Store) -> str | None:
    """Take back the newest edit of any window; returns its label, None when there is none."""
    return _step(store, "undone = 0 ORDER BY id DESC", value_at=1, undone=1)


def redo(store: Store) -> str | None:
    """Do the oldest edit that was taken back again; returns its label, None when there is none."""
    return _step(store, "undone = 1 ORDER BY id ASC", value_at=2, undone=0)


def _step(store: Store, which: str, *, value_at: int, undone: int) -> str | None:
    with store.write() as connection:
        row = connection.execute(
            f"SELECT id, label, cells FROM edits WHERE {which} LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        cells: Cells = {}
        for column, parts in json.loads(row[2]).items():
            if column == WAYS:
                _set_ways(connection, parts[0], parts[value_at])
                continue
            _set(connection, _column(column), parts[0], parts[value_at])
            cells[column] = (tuple(parts[0]), tuple(parts[value_at]))
        if cells:
            _commit(connection, cells)
        connection.execute("UPDATE edits SET undone = ? WHERE id = ?", (undone, row[0]))
        return str(row[1])


def stacks(store: Store) -> tuple[bool, bool]:
    """(can undo, can redo)."""
    row = store.connection.execute(
        "SELECT EXISTS (SELECT 1 FROM edits WHERE undone = 0), "
        "EXISTS (SELECT 1 FROM edits WHERE undone = 1)"
    ).fetchone()
    return bool(row[0]), bool(row[1])


def changes_since(store: Store, revision: int, upto: int) -> list[Cells] | None:
    """What happened after ``revision``; None if the whole table has to be read again."""
    rows = store.connection.execute(
        "SELECT revision, cells FROM changes WHERE revision > ? AND revision <= ? "
        "ORDER BY revision",
        (revision, upto),
    ).fetchall()
    if len(rows) != upto - revision:
        return None
    return [
        {column: (tuple(parts[0]), tuple(parts[1])) for column, parts in json.loads(row[1]).items()}
        for row in rows
    ]


def _remember(connection: sqlite3.Connection, label: str, done: Mapping[str, Any]) -> None:
    """Put an edit on the stack of what can be undone; nothing can be done again then."""
    connection.execute("DELETE FROM edits WHERE undone = 1")
    connection.execute("INSERT INTO edits (label, cells) VALUES (?, ?)", (label, json.dumps(done)))
    connection.execute(
        "DELETE FROM edits WHERE id <= (SELECT max(id) FROM edits) - ?", (UNDO_DEPTH,)
    )


def _ways(connection: sqlite3.Connection) -> dict[str, str]:
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (WAYS,)).fetchone()
    return dict(json.loads(row[0]) or {}) if row is not None else {}


def _move_ways(
    connection: sqlite3.Connection, chosen: Mapping[str, str | None]
) -> dict[str, list[list[Any]]]:
    """Choose ways, and what of them is new as an edit has it."""
    known = _ways(connection)
    names = [name for name, way in chosen.items() if known.get(name) != way]
    if not names:
        return {}
    ways = [chosen[name] for name in names]
    _set_ways(connection, names, ways)
    return {WAYS: [names, [known.get(name) for name in names], ways]}


def _set_ways(
    connection: sqlite3.Connection, names: Sequence[str], ways: Sequence[str | None]
) -> None:
    """None: the layer has the default way again."""
    chosen = {**_ways(connection), **dict(zip(names, ways, strict=True))}
    put_meta(connection, {WAYS: {name: way for name, way in chosen.items() if way is not None}})


def _column(name: str) -> str:
    if name not in EDITABLE:
        raise ValueError(f"{name!r} is not an editable column")
    return name


def _revision(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT revision FROM head").fetchone()[0])


def _values(connection: sqlite3.Connection, column: str, rows: Sequence[int]) -> list[Any]:
    if len(rows) == 1:
        found = connection.execute(
            f"SELECT idx, {column} FROM configuration WHERE idx = ?", (rows[0],)
        ).fetchall()
    else:
        found = connection.execute(f"SELECT idx, {column} FROM configuration").fetchall()
    values = dict(found)
    missing = [row for row in rows if row not in values]
    if missing:
        raise IndexError(f"there is no layer in row {missing[0]}")
    return [bool(values[row]) if column in BOOLEAN else values[row] for row in rows]


def _set(
    connection: sqlite3.Connection, column: str, rows: Sequence[int], values: Sequence[Any]
) -> None:
    connection.executemany(
        f"UPDATE configuration SET {column} = ? WHERE idx = ?", zip(values, rows, strict=True)
    )


def _commit(
    connection: sqlite3.Connection,
    cells: Mapping[str, tuple[tuple[int, ...], tuple[Any, ...]]],
) -> int:
    connection.execute("UPDATE head SET revision = revision + 1")
    revision = _revision(connection)
    connection.execute("INSERT INTO changes VALUES (?, ?)", (revision, json.dumps(cells)))
    connection.execute("DELETE FROM changes WHERE revision <= ?", (revision - UNDO_DEPTH,))
    return revision
