"""The tables of a project's SQLite file, and what came to them with later versions."""

from __future__ import annotations

import sqlite3

from workbench.studio.columns import DEFAULT_RATIO

SCHEMA_VERSION = 7

_INSPECTIONS = (
    "CREATE TABLE IF NOT EXISTS inspections (name TEXT PRIMARY KEY, time REAL NOT NULL, "
    "facts TEXT NOT NULL, data BLOB NOT NULL)"
)
_PROFILES = "CREATE TABLE IF NOT EXISTS profiles (name TEXT PRIMARY KEY, data BLOB NOT NULL)"
_CHANNELS = "CREATE TABLE IF NOT EXISTS channels (name TEXT PRIMARY KEY, data BLOB NOT NULL)"
_PRUNING = (
    "prune_enable INTEGER NOT NULL DEFAULT 0",
    f"prune_ratio REAL NOT NULL DEFAULT {DEFAULT_RATIO}",
)
_OUTCOMES = (
    "CREATE TABLE IF NOT EXISTS outcomes (job INTEGER PRIMARY KEY, facts TEXT, "
    "deleted INTEGER NOT NULL DEFAULT 0)"
)
_VARIANTS = (
    "CREATE TABLE IF NOT EXISTS variants (name TEXT PRIMARY KEY, time REAL NOT NULL, "
    "facts TEXT NOT NULL)"
)
_EVALUATIONS = (
    "CREATE TABLE IF NOT EXISTS evaluations (id INTEGER PRIMARY KEY AUTOINCREMENT, "
    "config_hash TEXT NOT NULL, metric REAL, seconds REAL NOT NULL)"
)

_SCHEMA = f"""
CREATE TABLE head (id INTEGER PRIMARY KEY CHECK (id = 1), tick INTEGER, revision INTEGER);
INSERT INTO head VALUES (1, 0, 0);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE layers (idx INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, info TEXT NOT NULL,
                     weight_range REAL);
CREATE TABLE configuration (idx INTEGER PRIMARY KEY, quant_enable INTEGER, retrain_enable INTEGER,
                            act_algo TEXT, wts_algo TEXT, channel_wise INTEGER,
                            act_bits INTEGER, wts_bits INTEGER,
                            dmq REAL NOT NULL DEFAULT 0,
                            {", ".join(_PRUNING)});
CREATE TABLE edits (id INTEGER PRIMARY KEY AUTOINCREMENT, label TEXT, cells TEXT NOT NULL,
                    undone INTEGER NOT NULL DEFAULT 0);
CREATE TABLE changes (revision INTEGER PRIMARY KEY, cells TEXT NOT NULL);
CREATE TABLE measurements (name TEXT, settings TEXT, cosine REAL, sqnr REAL, accumulated REAL,
                           seq INTEGER NOT NULL, PRIMARY KEY (name, settings));
CREATE INDEX measurements_by_seq ON measurements (seq);
CREATE TABLE histograms (name TEXT PRIMARY KEY, config_hash TEXT, data BLOB, seq INTEGER);
CREATE TABLE requests (name TEXT PRIMARY KEY, time REAL);
CREATE TABLE jobs (id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, args TEXT NOT NULL,
                   state TEXT NOT NULL, active INTEGER, runner TEXT NOT NULL,
                   pid INTEGER, pid_created REAL, cancel INTEGER NOT NULL DEFAULT 0,
                   pause INTEGER NOT NULL DEFAULT 0,
                   done INTEGER NOT NULL DEFAULT 0, total INTEGER NOT NULL DEFAULT 0,
                   message TEXT NOT NULL DEFAULT '', queued REAL, started REAL, ended REAL,
                   seconds_left REAL, error TEXT);
CREATE UNIQUE INDEX one_active_job ON jobs (active) WHERE active = 1;
CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, job INTEGER, time REAL NOT NULL,
                     kind TEXT NOT NULL, payload TEXT NOT NULL);
CREATE TABLE trials (id INTEGER PRIMARY KEY AUTOINCREMENT, job INTEGER, trial INTEGER, phase TEXT,
                     kind TEXT, metric REAL, loss REAL, satisfied INTEGER, seconds REAL,
                     float_layers TEXT NOT NULL, config_hash TEXT NOT NULL,
                     share REAL NOT NULL DEFAULT 1, cached INTEGER NOT NULL DEFAULT 0,
                     size REAL, bops REAL, settings TEXT);
CREATE INDEX trials_by_hash ON trials (config_hash);
CREATE TABLE worker (id INTEGER PRIMARY KEY CHECK (id = 1), pid INTEGER, pid_created REAL,
                     heartbeat REAL);
{_INSPECTIONS};
{_PROFILES};
{_CHANNELS};
{_OUTCOMES};
{_VARIANTS};
{_EVALUATIONS};
"""

_ADDED = {
    2: (("configuration", "dmq REAL NOT NULL DEFAULT 0"),),
    3: (
        ("jobs", "pause INTEGER NOT NULL DEFAULT 0"),
        ("trials", "share REAL NOT NULL DEFAULT 1"),
        ("trials", "cached INTEGER NOT NULL DEFAULT 0"),
        ("trials", "size REAL"),
        ("trials", "bops REAL"),
        ("trials", "settings TEXT"),
    ),
    6: tuple(("configuration", column) for column in _PRUNING),
}
"""Columns (table, definition) that came with a version after the first."""


def create_tables(connection: sqlite3.Connection) -> None:
    """Make the tables of a new project, unless another process was faster."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    # Another process may have been faster between our look and the lock.
    if _version(connection) == 0:
        for statement in _SCHEMA.split(";\n"):
            if statement.strip():
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def bring_up_to_date(connection: sqlite3.Connection) -> None:
    """Add what the version that wrote the project did not have; to be called in a transaction."""
    # Another process may have been faster between our look and the lock.
    version = _version(connection)
    for later in range(version + 1, SCHEMA_VERSION + 1):
        for table, column in _ADDED.get(later, ()):
            rows = connection.execute(f"PRAGMA table_info({table})").fetchall()
            if column.split()[0] not in [row[1] for row in rows]:
                connection.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
    for statement in (_INSPECTIONS, _PROFILES, _CHANNELS, _OUTCOMES, _VARIANTS, _EVALUATIONS):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {max(version, SCHEMA_VERSION)}")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
