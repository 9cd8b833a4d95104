"""The evaluation behind a what-if: who asks for it, what became of it, what it found.

One request a project, in the meta key ``measuring``: the newest configuration counts, and there is
no queue. Results are kept by the configuration's hash, as trials are, but are none: no row of the
history, no job.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from workbench.charts.text import N_
from workbench.studio.state import NAN
from workbench.studio.store import Store, put_meta

KEY = "measuring"
SWITCH = "background"
"""Meta key of the setting; on where it was never set."""
CALIBRATION_SECONDS = "calibration_seconds"
"""Meta key of how long the last calibration took."""

LIMIT_SECONDS = 20.0
"""An evaluation that is expected to take longer waits until somebody asks for it."""

DIED = N_("the worker ended while it measured")

STATES = ("wanted", "running", "declined", "failed", "done")


@dataclass(frozen=True)
class Measuring:
    """What becomes of one configuration: wanted, running, declined, failed or done.

    ``seconds``: what an evaluation is expected to take, NaN where nobody knows, where it was
    declined. ``asked``: by the user, however long it takes. ``error``: why it failed.
    """

    config_hash: str
    state: str
    seconds: float = NAN
    asked: bool = False
    error: str = ""

    @property
    def active(self) -> bool:
        return self.state in ("wanted", "running")


def read_measuring(value: Any) -> Measuring | None:
    """The stored value, checked: a project may come from anywhere."""
    if not isinstance(value, Mapping) or value.get("state") not in STATES:
        return None
    seconds = value.get("seconds")
    return Measuring(
        str(value.get("config_hash", "")),
        str(value["state"]),
        float(seconds) if isinstance(seconds, int | float) else NAN,
        bool(value.get("asked")),
        str(value.get("error", "")),
    )


def measuring_of(store: Store) -> Measuring | None:
    return read_measuring(store.get(KEY))


def is_on(value: Any) -> bool:
    """Whether edits are evaluated in the background, from the stored setting."""
    return value is not False


def ask(store: Store, config_hash: str, *, asked: bool = False) -> bool:
    """Want this configuration measured instead of any other; False if it is seen to already.

    ``asked`` by the user: again, even if it was declined or failed.
    """
    with store.write() as connection:
        known = _read(connection)
        if (
            known is not None
            and known.config_hash == config_hash
            and (not asked or (known.active and known.asked))
        ):
            return False
        _write(connection, Measuring(config_hash, "wanted", asked=asked))
        return True


def step(
    store: Store, config_hash: str, state: str, *, seconds: float = NAN, error: str = ""
) -> None:
    """Note what becomes of a request, unless another one has come in the meantime."""
    with store.write() as connection:
        known = _read(connection)
        if known is not None and known.config_hash == config_hash:
            _write(connection, Measuring(config_hash, state, seconds, known.asked, error))


def answer(store: Store, config_hash: str, metric: float, seconds: float) -> None:
    """Keep what was measured, also for a configuration that nobody wants any more."""
    with store.write() as connection:
        connection.execute("DELETE FROM evaluations WHERE config_hash = ?", (config_hash,))
        connection.execute(
            "INSERT INTO evaluations (config_hash, metric, seconds) VALUES (?, ?, ?)",
            (config_hash, metric, seconds),
        )
        known = _read(connection)
        if known is not None and known.config_hash == config_hash:
            _write(connection, Measuring(config_hash, "done"))


def drop(store: Store, config_hash: str | None = None) -> None:
    """Nothing is wanted any more; with a hash: of this configuration."""
    known = measuring_of(store)
    if known is not None and config_hash in (None, known.config_hash):
        store.put(**{KEY: None})


def evaluations_since(store: Store, after: int) -> tuple[int, dict[str, float]]:
    """(last id, metric by configuration hash) of evaluations newer than ``after``."""
    rows = store.connection.execute(
        "SELECT id, config_hash, metric FROM evaluations WHERE id > ? ORDER BY id", (after,)
    ).fetchall()
    found = {str(row[1]): float(row[2]) for row in rows if row[2] is not None}
    return (int(rows[-1][0]) if rows else after), found


def evaluation_seconds(store: Store) -> float:
    """What the last evaluation of all samples took; NaN if none is known."""
    row = store.connection.execute(
        "SELECT seconds FROM evaluations ORDER BY id DESC LIMIT 1"
    ).fetchone()
    if row is None:
        row = store.connection.execute(
            "SELECT seconds FROM trials WHERE kind <> 'float' AND share = 1 AND cached = 0 "
            "ORDER BY id DESC LIMIT 1"
        ).fetchone()
    return NAN if row is None or row[0] is None else float(row[0])


def _read(connection: sqlite3.Connection) -> Measuring | None:
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (KEY,)).fetchone()
    return None if row is None else read_measuring(json.loads(row[0]))


def _write(connection: sqlite3.Connection, measuring: Measuring) -> None:
    facts = asdict(measuring)
    if math.isnan(measuring.seconds):
        facts["seconds"] = None
    put_meta(connection, {KEY: facts})
