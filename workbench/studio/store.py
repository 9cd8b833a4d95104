"""The project's SQLite file: the truth that all windows and processes share.

Every write transaction adds one to ``head.tick``, so that a view learns with one single-row read
whether anything happened. One connection per thread; WAL, so readers never wait for a writer.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.engine.errors import MissingFile, WrongValue
from workbench.engine.graph.layers import LayerInfo
from workbench.studio.columns import EDITABLE, trainable
from workbench.studio.errors import NotWritable
from workbench.studio.measurements import Measurement, read_measurements, write_measurements
from workbench.studio.schema import SCHEMA_VERSION, bring_up_to_date, create_tables

if TYPE_CHECKING:
    from workbench.engine.analysis.cost import Cost
    from workbench.studio.source_spec import SourceSpec

Cells = dict[str, tuple[tuple[int, ...], tuple[Any, ...]]]
"""Column to rows and their values."""


class Store:
    """Rows of one project; safe to use from several threads and processes at once."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.read_only = read_only
        self._local = threading.local()
        self._connections: list[tuple[threading.Thread, sqlite3.Connection]] = []
        self._connections_lock = threading.Lock()
        self._closed = False
        self._file: tuple[int, int] | None = None
        version = int(self.connection.execute("PRAGMA user_version").fetchone()[0])
        if version == 0 and not read_only:
            self._create()
        elif version < SCHEMA_VERSION and not read_only:
            with self.write() as connection:
                bring_up_to_date(connection)
        elif version != SCHEMA_VERSION:
            self.close()
            raise WrongValue(
                f"the project was written by another version (schema {version}, this one reads "
                f"{SCHEMA_VERSION})",
                where=str(path),
                hint="Open it with the version that wrote it, or start a new project folder.",
            )
        self._file = _identity(path)

    def ensure_there(self) -> None:
        """``MissingFile`` when the file was deleted or replaced under the open project.

        SQLite would go on writing to what no name leads to any more.
        """
        if self._file is not None and _identity(self.path) != self._file:
            raise MissingFile(
                "the project was deleted, moved or replaced while it was open",
                where=str(self.path.parent),
                hint="Put the folder back, or open another project; nothing more is kept here.",
            )

    def _create(self) -> None:
        connection = self.connection
        try:
            create_tables(connection)
        except sqlite3.OperationalError as error:
            self.close()
            raise self._disk_error(error) from error

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            if self._closed:
                raise sqlite3.ProgrammingError("the project is closed")
            connection = self._connect()
            self._local.connection = connection
            with self._connections_lock:
                for thread, old in self._connections:
                    if not thread.is_alive():
                        old.close()
                self._connections = [c for c in self._connections if c[0].is_alive()]
                self._connections.append((threading.current_thread(), connection))
        return connection

    def _connect(self) -> sqlite3.Connection:
        self.ensure_there()
        try:
            if not self.read_only:
                connection = sqlite3.connect(
                    self.path, isolation_level=None, timeout=10.0, check_same_thread=False
                )
                connection.execute("PRAGMA synchronous = NORMAL")
            else:
                connection = self._connect_read_only()
            # A project may come from anywhere: nothing in its schema may run by itself.
            connection.execute("PRAGMA trusted_schema = OFF")
            own = connection.execute(
                "SELECT count(*) FROM sqlite_master WHERE type IN ('trigger', 'view')"
            ).fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise WrongValue(
                f"this is not a readable project database ({error})",
                where=str(self.path),
                hint="Restore the file from a copy, or start a new project folder.",
            ) from error
        if own:
            connection.close()
            raise WrongValue(
                "the database holds triggers or views, which no project has",
                where=str(self.path),
                hint="Do not use this file; start a new project folder.",
            )
        return connection

    def _connect_read_only(self) -> sqlite3.Connection:
        # Without write permission SQLite cannot make the -shm file that a WAL reader needs, so
        # that a database nobody has open must be declared immutable.
        last: sqlite3.DatabaseError | None = None
        for mode in ("mode=ro", "immutable=1"):
            try:
                connection = sqlite3.connect(
                    f"{self.path.absolute().as_uri()}?{mode}",
                    uri=True,
                    isolation_level=None,
                    timeout=10.0,
                    check_same_thread=False,
                )
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            except sqlite3.OperationalError as error:
                last = error
            else:
                return connection
        assert last is not None
        raise last

    def close(self) -> None:
        self._closed = True
        with self._connections_lock:
            for _, connection in self._connections:
                connection.close()
            self._connections.clear()
        self._local = threading.local()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction that takes the write lock at once, and moves the tick."""
        if self.read_only:
            raise NotWritable(
                "the project folder cannot be written, so it is open for reading only",
                where=str(self.path.parent),
                hint="Copy the folder to a place you can write to and open the copy.",
            )
        self.ensure_there()
        connection = self.connection
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise self._disk_error(error) from error
        try:
            yield connection
            connection.execute("UPDATE head SET tick = tick + 1")
            connection.execute("COMMIT")
        except BaseException as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise self._disk_error(error) from error
            raise

    def _disk_error(self, error: sqlite3.OperationalError) -> Exception:
        text = str(error)
        if "readonly" in text or "read-only" in text or "unable to open" in text:
            return NotWritable(
                f"the project cannot be written ({text})",
                where=str(self.path),
                hint="Check the permissions of the folder; nothing was changed.",
            )
        if "disk is full" in text or "disk I/O" in text:
            return NotWritable(
                f"the disk refuses to write ({text})",
                where=str(self.path),
                hint="Free some space; nothing was changed.",
            )
        return error

    # -- head and meta ------------------------------------------------------------------------

    def head(self) -> tuple[int, int]:
        """(tick, revision): two integers that say whether there is anything to read."""
        row = self.connection.execute("SELECT tick, revision FROM head").fetchone()
        return int(row[0]), int(row[1])

    def get(self, key: str, default: Any = None) -> Any:
        row = self.connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else json.loads(row[0])

    def put(self, **values: Any) -> None:
        with self.write() as connection:
            put_meta(connection, values)

    # -- layers -------------------------------------------------------------------------------

    def write_layers(
        self,
        layers: Sequence[LayerInfo],
        source: SourceSpec,
        *,
        weight_ranges: Mapping[str, float] | None = None,
        float_bytes: int = 0,
    ) -> None:
        """Replace what is known of the model of ``source``; ``layers`` in execution order.

        Measurements are dropped. If the layers are not the ones known before, the configuration
        becomes the default one (every layer is quantised and trained that can be) and the stacks
        of undo and redo, which speak of the old layers, become empty.
        """
        ranges = weight_ranges or {}
        same = [(x.name, x.type, x.eligible) for x in self.layers()] == [
            (x.name, x.type, x.eligible) for x in layers
        ]
        with self.write() as connection:
            kept = ("configuration", "edits") if same else ()
            for table in (
                "layers",
                "configuration",
                "edits",
                "changes",
                "measurements",
                "histograms",
                "inspections",
                "requests",
            ):
                if table not in kept:
                    connection.execute(f"DELETE FROM {table}")
            connection.executemany(
                "INSERT INTO layers VALUES (?, ?, ?, ?)",
                [
                    (i, layer.name, json.dumps(asdict(layer)), ranges.get(layer.name))
                    for i, layer in enumerate(layers)
                ],
            )
            connection.executemany(
                "INSERT OR IGNORE INTO configuration (idx, quant_enable, retrain_enable, act_algo, "
                "wts_algo, channel_wise, act_bits, wts_bits, dmq) "
                "VALUES (?, ?, ?, 'ifmr', 'arq_quantize', ?, 8, 8, 0)",
                [
                    (
                        i,
                        int(layer.eligible),
                        int(trainable(layer, source)),
                        int(layer.channel_wise and layer.eligible),
                    )
                    for i, layer in enumerate(layers)
                ],
            )
            connection.execute("UPDATE head SET revision = revision + 1")
            put_meta(connection, {"float_bytes": int(float_bytes)})

    def layers(self) -> list[LayerInfo]:
        """Layers in execution order."""
        rows = self.connection.execute("SELECT info FROM layers ORDER BY idx").fetchall()
        return [layer_from_json(row[0]) for row in rows]

    def weight_ranges(self) -> list[float | None]:
        rows = self.connection.execute("SELECT weight_range FROM layers ORDER BY idx").fetchall()
        return [row[0] for row in rows]

    def configuration(self) -> tuple[int, dict[str, list[Any]]]:
        """(revision, column to values in layer order), from one moment."""
        connection = self.connection
        connection.execute("BEGIN")
        try:
            revision = int(connection.execute("SELECT revision FROM head").fetchone()[0])
            rows = connection.execute(
                f"SELECT {', '.join(EDITABLE)} FROM configuration ORDER BY idx"
            ).fetchall()
        finally:
            connection.execute("COMMIT")
        columns: dict[str, list[Any]] = {}
        for position, column in enumerate(EDITABLE):
            convert = bool if column in BOOLEAN else lambda value: value
            columns[column] = [convert(row[position]) for row in rows]
        return revision, columns

    # -- trials -------------------------------------------------------------------------------

    def add_trial(
        self,
        job: int,
        *,
        phase: str,
        kind: str,
        metric: float | None,
        loss: float | None,
        satisfied: bool,
        seconds: float,
        float_layers: Sequence[str],
        config_hash: str,
        share: float = 1.0,
        cached: bool = False,
        cost: Cost | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        trial: int | None = None,
    ) -> None:
        """One evaluated configuration; ``trial`` None: the next number of the project.

        ``share`` of the samples was evaluated; ``cost``: of the model with this configuration;
        ``settings``: what differs from the generated configuration, by layer and column.
        """
        with self.write() as connection:
            if trial is None:
                query = "SELECT coalesce(max(id), 0) FROM trials"
                trial = int(connection.execute(query).fetchone()[0])
            connection.execute(
                "INSERT INTO trials (job, trial, phase, kind, metric, loss, satisfied, seconds, "
                "float_layers, config_hash, share, cached, size, bops, settings) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    job, trial, phase, kind, metric, loss, int(satisfied), seconds,
                    json.dumps(list(float_layers)), config_hash, share, int(cached),
                    None if cost is None else cost.size_bytes,
                    None if cost is None else cost.bit_operations,
                    None if settings is None else json.dumps(settings),
                ),
            )  # fmt: skip

    def forget_results(self) -> None:
        """Drop what was found out about another model: trials, exports, figures."""
        with self.write() as connection:
            connection.execute("DELETE FROM trials")
            connection.execute("DELETE FROM evaluations")
            connection.execute("DELETE FROM inspections")
            connection.execute("DELETE FROM profiles")
            connection.execute("DELETE FROM channels")
            connection.execute(
                "INSERT OR REPLACE INTO outcomes SELECT id, NULL, 1 FROM jobs WHERE active IS NULL"
            )
            put_meta(
                connection,
                {
                    "figures": {}, "ranking": [], "bracket": None, "exports": None,
                    "record_hash": "", "inspected": {}, "search": None, "training": None,
                    "formats": [], "ways": {}, "quantized": None,
                    "pruning": None, "decomposition": None, "shrunk": None,
                    "measuring": None,
                },
            )  # fmt: skip

    # -- measurements -------------------------------------------------------------------------

    def write_measurements(self, rows: Sequence[tuple[str, float, float, float]]) -> None:
        """Rows are (layer, cosine, SQNR in decibel, accumulated cosine), for today's settings."""
        with self.write() as connection:
            write_measurements(connection, rows)

    def measurements(self, since: int = 0) -> list[Measurement]:
        """Rows newer than sequence number ``since``, NaN where not measured."""
        return read_measurements(self.connection, since)


BOOLEAN = ("quant_enable", "retrain_enable", "prune_enable", "channel_wise")


def put_meta(connection: sqlite3.Connection, values: Mapping[str, Any]) -> None:
    connection.executemany(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        [(key, json.dumps(value)) for key, value in values.items()],
    )


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file this is, whatever its name; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def layer_from_json(text: str) -> LayerInfo:
    try:
        fields = json.loads(text)
        for key in ("input_shape", "output_shape", "weight_shape"):
            fields[key] = tuple(int(size) for size in fields[key])
        return LayerInfo(**fields)
    except (TypeError, KeyError, ValueError) as error:
        raise WrongValue(
            f"a layer of the project cannot be read ({error})",
            where="project.sqlite",
            hint="Restore the file from a copy, or start a new project folder.",
        ) from error
