"""Rows of the ``measurements`` table: each layer's similarity, by the settings it had."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench.studio.state import NAN


@dataclass(frozen=True)
class Measurement:
    """One layer's similarity under ``settings`` (see ``settings_key``); NaN where not measured."""

    name: str
    settings: str
    cosine: float
    sqnr: float
    accumulated: float
    seq: int


def write_measurements(
    connection: sqlite3.Connection,
    rows: Sequence[tuple[str, float, float, float]],
    settings: Mapping[str, str] | None = None,
) -> None:
    """Keep measurements under the settings they were made with; None: those of the moment."""
    if settings is None:
        found = connection.execute(
            "SELECT name, act_algo, wts_algo, channel_wise, act_bits, wts_bits, dmq "
            "FROM layers JOIN configuration USING (idx)"
        )
        settings = {row[0]: settings_key(*row[1:]) for row in found}
    seq = int(connection.execute("SELECT coalesce(max(seq), 0) FROM measurements").fetchone()[0])
    connection.executemany(
        "INSERT INTO measurements VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (name, settings) DO UPDATE "
        "SET cosine = excluded.cosine, sqnr = excluded.sqnr, "
        "accumulated = coalesce(excluded.accumulated, accumulated), seq = excluded.seq",
        # SQLite stores NaN as NULL, which is what "not measured" means here.
        [
            (name, settings[name], *values, seq + 1 + i)
            for i, (name, *values) in enumerate(rows)
            if name in settings
        ],
    )


def settings_key(
    act_algo: str,
    wts_algo: str,
    channel_wise: bool | int,
    act_bits: int,
    wts_bits: int,
    dmq: float = 0.0,
) -> str:
    """What a layer's measurement depends on, as text."""
    plain = f"{act_algo}/{act_bits}/{wts_algo}/{wts_bits}/{int(bool(channel_wise))}"
    return f"{plain}/dmq{dmq:g}" if dmq else plain


def read_measurements(connection: sqlite3.Connection, since: int) -> list[Measurement]:
    rows = connection.execute(
        "SELECT name, settings, cosine, sqnr, accumulated, seq FROM measurements "
        "WHERE seq > ? ORDER BY seq",
        (since,),
    ).fetchall()
    return [
        Measurement(row[0], row[1], _nan(row[2]), _nan(row[3]), _nan(row[4]), int(row[5]))
        for row in rows
    ]


def _nan(value: float | None) -> float:
    return NAN if value is None else float(value)
