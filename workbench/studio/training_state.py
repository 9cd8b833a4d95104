"""What a project's last training is and has come to, read from the store for a session."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.studio.masks import MaskRow, read_masks
from workbench.studio.project import Project
from workbench.studio.training_feed import EVENTS

METHODS = ("qat", "distill", "finetune", "sparse", "compressed")
QUANTISING = ("qat", "distill")
"""Methods that need a layer that can be quantised."""

COMPRESSING = ("sparse", "compressed")
PLAIN = ("finetune", "sparse")
"""Methods that leave the model as it is but for its weights, which can become the project's."""

SPARSITIES = ("2:4", "channels", "none")
"""What 'compressed' can take from layers."""

KEY = "training"
_KINDS = tuple(event.__name__ for event in EVENTS)


@dataclass(frozen=True)
class CheckpointRow:
    """One checkpoint on disk: the state after ``step`` steps; ``time`` in seconds since 1970."""

    step: int
    name: str
    bytes: int
    time: float


@dataclass(frozen=True)
class TrainingState:
    """The last training of a project.

    ``state``: running, stopped (it can go on from ``checkpoints``), failed, or finished. ``asked``
    are the arguments of ``Session.train``; ``jobs`` those that worked on it, the first begun and
    each later one resumed. ``metric`` is that of the trained network, NaN until finished;
    ``metric_before`` that of the model the training began with, NaN where it is not measured.
    ``masks``: of 2:4 sparsity, a row for every layer.
    """

    method: str
    asked: Mapping[str, Any]
    jobs: tuple[int, ...]
    state: str = "running"
    data: str = ""
    loss: str = ""
    metric: float = math.nan
    best_step: int = 0
    steps: int = 0
    stopped_early: bool = False
    layers: int = 0
    seconds: float = 0.0
    checkpoints: tuple[CheckpointRow, ...] = ()
    metric_before: float = math.nan
    masks: tuple[MaskRow, ...] = ()

    @property
    def can_resume(self) -> bool:
        return self.state in ("stopped", "failed") and bool(self.checkpoints)


@dataclass(frozen=True)
class Curves:
    """What charts of a training draw, each as long tables.

    ``steps``: step, steps, epoch, loss (mean since the row before), learning_rate.
    ``evaluations``: step, metric, best. ``clips``: step, layer, low, high.
    """

    steps: pd.DataFrame = field(
        default_factory=lambda: _empty(
            step=np.int64, steps=np.int64, epoch=np.int64, loss=float, learning_rate=float
        )
    )
    evaluations: pd.DataFrame = field(
        default_factory=lambda: _empty(step=np.int64, metric=float, best=bool)
    )
    clips: pd.DataFrame = field(
        default_factory=lambda: _empty(step=np.int64, layer=object, low=float, high=float)
    )


def _empty(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})


class TrainingFollower:
    """Says how ``training`` and ``curves`` of a session change; not for two threads at once."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._seen = ""
        self._seq = 0
        self._first = 0
        self._written = 0
        self._curves = Curves()
        self._state: TrainingState | None = None

    def updates(self) -> dict[str, Any]:
        """Params that are not as they were at the last call."""
        connection = self._project.store.connection
        row = connection.execute("SELECT value FROM meta WHERE key = ?", (KEY,)).fetchone()
        text = row[0] if row else "null"
        facts = _facts(text)
        if facts is None:
            if self._state is None:
                return {}
            self._state, self._curves, self._first, self._seen = None, Curves(), 0, text
            return {"training": None, "curves": self._curves}
        found: dict[str, Any] = {}
        if facts["jobs"][0] != self._first:
            self._first, self._curves = facts["jobs"][0], Curves()
            found["curves"] = self._curves
        new = self._new_events()
        if new:
            written = [p["step"] for kind, p in new if kind == "CheckpointWritten"]
            self._written = written[-1] if written else self._written
            self._curves = _extended(self._curves, new)
            found["curves"] = self._curves
        state = self._read(facts)
        if state != self._state:
            self._state = found["training"] = state
        self._seen = text
        return found

    def _new_events(self) -> list[tuple[str, dict[str, Any]]]:
        marks = ", ".join("?" * len(_KINDS))
        rows = self._project.store.connection.execute(
            f"SELECT seq, kind, payload FROM events WHERE seq > ? AND job >= ? "
            f"AND kind IN ({marks}) ORDER BY seq",
            (self._seq, self._first, *_KINDS),
        ).fetchall()
        if rows:
            self._seq = int(rows[-1][0])
        return [(str(kind), json.loads(payload)) for _, kind, payload in rows]

    def _read(self, facts: Mapping[str, Any]) -> TrainingState:
        known = {
            key: facts[key]
            for key in ("data", "loss", "best_step", "steps", "stopped_early", "layers", "seconds")
            if key in facts
        }
        metric, before = facts.get("metric"), facts.get("metric_before")
        return TrainingState(
            method=str(facts["method"]),
            asked=facts["asked"],
            jobs=tuple(facts["jobs"]),
            state=self._job_state(facts),
            metric=math.nan if metric is None else float(metric),
            metric_before=math.nan if before is None else float(before),
            masks=read_masks(facts.get("masks")),
            checkpoints=checkpoint_rows(self._project, str(facts["method"]), self._written),
            **known,
        )

    def _job_state(self, facts: Mapping[str, Any]) -> str:
        if facts.get("finished"):
            return "finished"
        row = self._project.store.connection.execute(
            "SELECT state FROM jobs WHERE id = ?", (facts["jobs"][-1],)
        ).fetchone()
        state = str(row[0]) if row else "failed"
        return {"cancelled": "stopped", "finished": "finished", "failed": "failed"}.get(
            state, "running"
        )


def _facts(text: str) -> dict[str, Any] | None:
    """The stored value, checked: a project may come from anywhere."""
    facts = json.loads(text)
    if not isinstance(facts, dict) or facts.get("method") not in METHODS:
        return None
    jobs = facts.get("jobs")
    if not isinstance(jobs, list) or not jobs or not all(isinstance(job, int) for job in jobs):
        return None
    return facts if isinstance(facts.get("asked"), dict) else None


def groups_file(project: Project) -> Path:
    """The one checkpoint of a distillation: the student after its last finished group."""
    return project.checkpoints_of("distill") / "groups.pt"


def checkpoint_rows(project: Project, method: str, written: int) -> tuple[CheckpointRow, ...]:
    """The checkpoints of a method that are on disk, newest first; the last is of ``written``."""
    from workbench.engine.flows.training_checkpoint import CheckpointFile, list_checkpoints

    files = list_checkpoints(project.checkpoints_of(method))
    if method == "distill":
        files = [CheckpointFile(written, groups_file(project))]
    rows = []
    for file in reversed(files):
        try:
            facts = file.path.stat()
        except FileNotFoundError:  # there is none, or the training has just replaced it
            continue
        rows.append(CheckpointRow(file.step, file.path.name, facts.st_size, facts.st_mtime))
    return tuple(rows)


def _extended(curves: Curves, new: list[tuple[str, dict[str, Any]]]) -> Curves:
    """With the new events; a resumed training writes the steps after its checkpoint again."""
    steps = [p for kind, p in new if kind == "TrainStep"]
    evaluations = [p for kind, p in new if kind == "Evaluated"]
    clips = [
        {"step": p["step"], "layer": layer, "low": low, "high": high}
        for kind, p in new
        if kind == "ClipsMoved"
        for layer, low, high in p["clips"]
    ]
    return replace(
        curves,
        steps=_joined(curves.steps, steps),
        evaluations=_joined(curves.evaluations, evaluations),
        clips=_joined(curves.clips, clips),
    )


def _joined(table: pd.DataFrame, rows: list[dict[str, Any]]) -> pd.DataFrame:
    if not rows:
        return table
    kept: list[dict[str, Any]] = []
    for row in rows:
        if kept and kept[-1]["step"] > row["step"]:  # here it was resumed
            while kept and kept[-1]["step"] >= row["step"]:
                kept.pop()
        kept.append(row)
    fresh = pd.DataFrame(kept)[list(table.columns)].astype(table.dtypes.to_dict())
    if not len(table):
        return fresh
    return pd.concat([table[table["step"] < fresh["step"].min()], fresh], ignore_index=True)
