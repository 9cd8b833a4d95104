"""Results of weights that the model does not have at the moment, in a file until it has them again.

Trials, exports and the last training; measurements of layers are made anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.studio.history import DELETIONS
from workbench.studio.project import write_whole
from workbench.studio.store import Store, put_meta

TABLES = ("trials", "outcomes")
META = ("exports", "record_hash", "search", "training")


def put_aside(store: Store, path: Path) -> None:
    """Write the results that the store has now to ``path``."""
    tables = {}
    for table in TABLES:
        cursor = store.connection.execute(f"SELECT * FROM {table}")
        names = [column[0] for column in cursor.description]
        tables[table] = [dict(zip(names, row, strict=True)) for row in cursor]
    facts = {
        "tables": tables,
        "meta": {key: store.get(key) for key in META},
        "metric_float": (store.get("figures") or {}).get("metric_float"),
    }
    write_whole(path, json.dumps(facts))


def bring_back(store: Store, path: Path) -> None:
    """Put the results in ``path`` into the store; without a readable file it stays as it is."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        rows = {table: [dict(row) for row in facts["tables"][table]] for table in TABLES}
        meta = {key: facts["meta"][key] for key in META}
        metric = facts["metric_float"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    figures = store.get("figures") or {}
    if metric is not None:
        figures = {**figures, "metric_float": metric}
    with store.write() as connection:
        connection.execute("DELETE FROM trials")
        for table in TABLES:
            known = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            _fill(connection, table, [[row.get(name) for name in known] for row in rows[table]])
        # The count of deletions tells the windows to read the trials anew.
        deletions = int(store.get(DELETIONS, 0)) + 1
        put_meta(connection, {**meta, "figures": figures, DELETIONS: deletions})


def _fill(connection: Any, table: str, rows: list[list[Any]]) -> None:
    for row in rows:
        marks = ", ".join("?" * len(row))
        connection.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", row)
