"""All trials, exports and trainings of a project, ever: one table, and taking rows of it away."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.engine.errors import WorkbenchError, WrongState, WrongValue
from workbench.studio.project import Project
from workbench.studio.store import Store, put_meta
from workbench.studio.training_state import METHODS

RESULTS: Mapping[str, str] = {
    "export": "exports", "train": "training", "quantize": "quantized",
    "prune": "shrunk", "decompose": "shrunk",
}  # fmt: skip
"""Kinds of job that are rows of the history, and the meta key each leaves its result under."""

DELETIONS = "deletions"
"""Meta key that counts deletions, so that every window learns of them."""

FACTS = ("key", "kind", "number", "job", "job_kind", "time", "state")
FIGURES = ("metric", "loss", "size", "bops", "n_float", "share", "seconds")
DETAILS = ("float_layers", "settings", "config_hash", "error", "files", "asked", "facts")
COLUMNS = (*FACTS, *FIGURES, *DETAILS)


@dataclass(frozen=True)
class Deletion:
    """What goes with some rows of the history.

    ``files`` (and folders) lie inside the project; ``kept`` are files of theirs that stay, because
    they lie elsewhere.
    """

    trials: int = 0
    jobs: int = 0
    files: tuple[Path, ...] = ()
    kept: tuple[Path, ...] = ()


def remember(store: Store, job: int, kind: str) -> None:
    """Keep what a finished job leaves as a project's last result, before the next one replaces it.

    Called by whoever runs jobs, for every job.
    """
    key = RESULTS.get(kind)
    facts = store.get(key) if key else None
    args = store.connection.execute("SELECT args FROM jobs WHERE id = ?", (job,)).fetchone()
    if facts is None or not _leaves_result(json.loads(args[0])):
        return
    if kind == "export" and facts.get("method", "ptq") == "ptq":
        facts = {**facts, "config_hash": store.get("record_hash") or ""}
    with store.write() as connection:
        connection.execute(
            "INSERT OR REPLACE INTO outcomes (job, facts) VALUES (?, ?)", (job, json.dumps(facts))
        )


def _leaves_result(args: Mapping[str, Any]) -> bool:
    """A decomposition that is only tried out makes nothing."""
    return not args.get("dry_run")


def read_history(store: Store, trials: pd.DataFrame) -> pd.DataFrame:
    """One row a trial, export, training, quantised folder or smaller model, in order of time.

    ``trials``: the session's. ``key`` names a row ("trial 3", "job 12"); ``kind`` is the trial's
    or the job's; figures are as in ``trials``, NaN where there is none. A training has the figures
    of the network it made; an export those of its files: ``size`` in bytes of the deploy file (of
    the smallest, if there is none) and ``metric`` as measured in ONNX Runtime. ``files``: the paths
    that were written and not written again by a later row. ``state``: finished, failed, cancelled,
    running or paused.
    """
    rows = store.connection.execute(
        "SELECT jobs.id, kind, state, args, started, ended, error, facts, deleted FROM jobs "
        "LEFT JOIN outcomes ON outcomes.job = jobs.id ORDER BY jobs.id"
    ).fetchall()
    kinds = {int(row[0]): str(row[1]) for row in rows}
    times = {int(row[0]): float(row[4] or 0.0) for row in rows}
    own = {i for i, kind in kinds.items() if kind in RESULTS}
    found: list[tuple[tuple[int, int], dict[str, Any]]] = []
    made: dict[int, Mapping[str, Any]] = {}
    for place, row in enumerate(trials.to_dict("records")):
        job = int(row["job"])
        if job in own:
            made[job] = row
        else:
            found.append(((job, place), _trial(row, kinds.get(job, ""), times.get(job, 0.0))))
    for number, kind, state, args, started, ended, error, facts, deleted in rows:
        if kind in RESULTS and not deleted and _leaves_result(json.loads(args)):
            entry = _base(f"job {number}", kind, int(number), int(number), kind, started, state)
            entry["seconds"] = float(ended - started) if ended and started else math.nan
            entry["asked"] = json.loads(args)
            entry["error"] = str(json.loads(error)["summary"]) if error else ""
            entry |= _copied(made.get(int(number)))
            if facts is not None:
                entry |= _READERS[kind](json.loads(facts))
            found.append(((int(number), 0), entry))
    found.sort(key=lambda one: one[0])
    entries = [entry for _, entry in found]
    taken: set[str] = set()
    for entry in reversed(entries):
        written = entry["files"]
        entry["files"] = tuple(path for path in written if path not in taken)
        taken.update(written)
    return _table(entries)


def _table(entries: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    numbers = dict.fromkeys(("time", *FIGURES), np.float64) | {"number": np.int64, "job": np.int64}
    return pd.DataFrame(
        {
            column: pd.Series(
                [entry[column] for entry in entries], dtype=numbers.get(column, object)
            )
            for column in COLUMNS
        }
    )


def _base(
    key: str, kind: str, number: int, job: int, job_kind: str, time: float | None, state: str
) -> dict[str, Any]:
    return {
        "key": key, "kind": kind, "number": number, "job": job, "job_kind": job_kind,
        "time": time or 0.0, "state": state, **dict.fromkeys(FIGURES, math.nan),
        "float_layers": (), "settings": None, "config_hash": "", "error": "", "files": (),
        "asked": {}, "facts": {},
    }  # fmt: skip


def _trial(row: Mapping[str, Any], job_kind: str, time: float) -> dict[str, Any]:
    number = int(row["trial"])
    entry = _base(
        f"trial {number}", str(row["kind"]), number, int(row["job"]), job_kind, time, "finished"
    )
    return entry | _copied(row)


def _copied(row: Mapping[str, Any] | None) -> dict[str, Any]:
    if row is None:
        return {}
    names = (*FIGURES, "float_layers", "settings", "config_hash")
    return {name: row[name] for name in names}


def _export(facts: Mapping[str, Any]) -> dict[str, Any]:
    files = {str(file["kind"]): file for file in facts["files"]}
    smaller = [file for kind, file in files.items() if kind != "float"]
    judged = next((files[k] for k in ("fake_quant", "qdq") if k in files), None)
    metric = math.nan if judged is None or judged["metric"] is None else float(judged["metric"])
    base = (files.get("float") or {}).get("metric")
    size = files.get("deploy") or min(smaller, key=lambda f: f["bytes"], default=None)
    entry = {
        "metric": metric,
        "loss": math.nan if base is None else float(base) - metric,
        "size": math.nan if size is None else float(size["bytes"]),
        "files": tuple(str(file["path"]) for file in facts["files"]),
        "facts": facts,
        "config_hash": str(facts.get("config_hash", "")),
    }
    if "float_layers" in facts:
        floats = tuple(str(name) for name in facts["float_layers"])
        entry |= {"float_layers": floats, "n_float": len(floats), "settings": facts["settings"]}
    return entry


def _train(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"facts": facts, "seconds": float(facts.get("seconds") or math.nan)}


def _quantize(facts: Mapping[str, Any]) -> dict[str, Any]:
    metric = float(facts["metric_converted"])
    return {
        "metric": metric,
        "loss": float(facts["metric_float"]) - metric,
        "size": float(facts["bytes_converted"]),
        "seconds": float(facts["seconds"]),
        "files": (str(facts["folder"]), str(facts["config_path"])),
        "facts": facts,
    }


def _shrink(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The smaller model is a project of its own: its files are no part of this one."""
    before, metric = (float(value) for value in facts["metric"])
    return {
        "metric": metric,
        "loss": before - metric,
        "size": float(facts["bytes"][1]),
        "seconds": float(facts["seconds"]),
        "facts": facts,
    }


_READERS = {
    "export": _export, "train": _train, "quantize": _quantize,
    "prune": _shrink, "decompose": _shrink,
}  # fmt: skip


# -- deleting -------------------------------------------------------------------------------------


def deletion(project: Project, table: pd.DataFrame, keys: Iterable[str]) -> Deletion:
    """What would go with the rows called ``keys``.

    Errors: ``WrongValue`` for a key that is not there, ``WrongState`` for rows of the job that
    runs.
    """
    rows = [entry_row(table, key) for key in dict.fromkeys(keys)]
    running = {int(row["job"]) for row in rows} & _active(project.store)
    if running:
        raise WrongState(
            "the job that made this is still at work",
            where=f"job {min(running)}",
            hint="Wait for it or cancel it, then delete.",
        )
    jobs = [row for row in rows if row["kind"] in RESULTS]
    files: list[Path] = []
    kept: list[Path] = []
    for row in jobs:
        for path in map(Path, row["files"]):
            if _is_own(project, path):
                files += [path, *_companions(path)]
            elif path.exists():
                kept.append(path)
        files += _training_files(project, int(row["job"]))
    return Deletion(
        len(rows) - len(jobs), len(jobs), tuple(dict.fromkeys(files)), tuple(dict.fromkeys(kept))
    )


def delete(project: Project, table: pd.DataFrame, keys: Iterable[str]) -> Deletion:
    """Take rows out of the history for good, and what they wrote out of the project folder.

    Files outside the project folder are never touched. Errors: as ``deletion``; ``NotWritable``.
    """
    names = list(dict.fromkeys(keys))
    plan = deletion(project, table, names)
    rows = [entry_row(table, key) for key in names]
    jobs = [int(row["job"]) for row in rows if row["kind"] in RESULTS]
    trials = [(int(row["job"]), int(row["number"])) for row in rows if row["kind"] not in RESULTS]
    store = project.store
    last = store.get("exports") or {}
    gone = {str(path) for path in plan.files}
    training = store.get("training") or {}
    meta: dict[str, Any] = {DELETIONS: int(store.get(DELETIONS, 0)) + 1}
    if any(str(file["path"]) in gone for file in last.get("files", ())):
        meta["exports"] = None
    if set(training.get("jobs", ())[-1:]) & set(jobs):
        meta["training"] = None
    if str((store.get("quantized") or {}).get("folder")) in gone:
        meta["quantized"] = None
    with store.write() as connection:
        connection.executemany("DELETE FROM trials WHERE job = ? AND trial = ?", trials)
        connection.executemany("DELETE FROM trials WHERE job = ?", [(job,) for job in jobs])
        connection.executemany(
            "INSERT OR REPLACE INTO outcomes (job, facts, deleted) VALUES (?, NULL, 1)",
            [(job,) for job in jobs],
        )
        put_meta(connection, meta)
    for path in plan.files:
        # The row is gone already: a file that cannot be deleted must not bring it back.
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return plan


def entry_row(table: pd.DataFrame, key: str) -> Any:
    """The row called ``key``; ``WrongValue`` if there is none."""
    rows = table[table["key"] == key]
    if not len(rows):
        raise WrongValue(
            f"there is no {key!r} in the history",
            where="history",
            hint="It may have been deleted in another window; see session.history().",
        )
    return rows.iloc[-1]


def _active(store: Store) -> set[int]:
    rows = store.connection.execute("SELECT id FROM jobs WHERE active = 1").fetchall()
    return {int(row[0]) for row in rows}


def _is_own(project: Project, path: Path) -> bool:
    """Does it lie in the project's folder, links followed?  A path comes from a stored project."""
    folder = project.folder.resolve()
    real = path.resolve()
    if not path.exists() or path.is_symlink() or folder not in real.parents:
        return False
    if real.is_dir():
        return real.parent == project.exports.resolve()
    return real.suffix in (".onnx", ".json") and real.parent != folder


def _companions(path: Path) -> list[Path]:
    """Files beside an ONNX file that hold its large tensors."""
    if path.suffix != ".onnx":
        return []
    from workbench.engine.graph.onnx_source import external_locations

    try:
        names = external_locations(path)
    except (WorkbenchError, OSError, ValueError):  # no model any more: only the file itself goes
        return []
    beside = [path.parent / name for name in names]
    return [
        p
        for p in beside
        if p.parent == path.parent and p.suffix != ".onnx" and p.is_file() and not p.is_symlink()
    ]


def _training_files(project: Project, job: int) -> list[Path]:
    """Weights and checkpoints, where the training is the project's last one."""
    facts = project.store.get("training") or {}
    if job not in facts.get("jobs", ())[-1:] or facts.get("method") not in METHODS:
        return []
    method = str(facts["method"])
    found = [project.weights_of(method), project.checkpoints_of(method)]
    return [path for path in found if path.exists() and not path.is_symlink()]
