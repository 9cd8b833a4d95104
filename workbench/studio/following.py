"""What a session knows of its project, brought up to date from the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.engine.errors import WrongValue
from workbench.studio import edits, jobtable, results
from workbench.studio.columns import without_training
from workbench.studio.figures import Figures, Judged
from workbench.studio.history import DELETIONS
from workbench.studio.measurements import Measurement
from workbench.studio.measuring import evaluations_since
from workbench.studio.pins import read_pins
from workbench.studio.project import Project
from workbench.studio.pruning_state import PruningState
from workbench.studio.state import Change, JobState
from workbench.studio.store import Cells
from workbench.studio.table import (
    SETTINGS,
    build_table,
    with_cells,
    with_measurements,
    with_pins,
    with_sensitivity,
)
from workbench.studio.training_state import TrainingFollower

if TYPE_CHECKING:
    from workbench.engine.graph.layers import LayerInfo


class Follower:
    """Reads what is new since its last look and says which params of the session it changes.

    Not safe to call from two threads at once; the session locks.
    """

    def __init__(self, project: Project) -> None:
        self._store = project.store
        self._source = project.source
        self.figures = Figures(project)
        self._training = TrainingFollower(project)
        self.infos: list[LayerInfo] = []
        self.row_of: dict[str, int] = {}
        self._measured: dict[tuple[str, str], Measurement] = {}
        self._measured_seq = 0
        self._last_trial = self._last_evaluation = 0
        self._deletions = 0
        self._meta: dict[str, str] = {}
        self._pruning: PruningState | None = None

    def row(self, name: str) -> int:
        """The row of a layer; ``WrongValue`` if there is no such layer."""
        try:
            return self.row_of[name]
        except KeyError:
            close = [n for n in self.row_of if name and (name in n or n in name)][:3]
            raise WrongValue(
                f"there is no layer {name!r}",
                where="layers",
                hint=f"Did you mean {', '.join(close)}?" if close else "See session.layers.",
            ) from None

    def configuration(self, table: pd.DataFrame, seen: int, revision: int) -> dict[str, Any]:
        """Params that change with the edits between the revision of ``table`` and ``revision``."""
        batches = edits.changes_since(self._store, seen, revision) if self.infos else None
        if batches is None:
            return self._everything()
        for cells in batches:
            table = self._with_cells(table, cells)
        can_undo, can_redo = edits.stacks(self._store)
        return {
            "layers": table,
            "revision": revision,
            "change": results.merged_change(batches, revision),
            "can_undo": can_undo,
            "can_redo": can_redo,
        }

    def _everything(self) -> dict[str, Any]:
        store = self._store
        revision, stored = store.configuration()
        columns = without_training(stored, self._source)
        self.infos = store.layers()
        self.row_of = {layer.name: row for row, layer in enumerate(self.infos)}
        rows = store.measurements()
        self._measured = {(m.name, m.settings): m for m in rows}
        self._measured_seq = max((m.seq for m in rows), default=0)
        pins = read_pins(store)
        table = build_table(self.infos, columns, store.weight_ranges(), self._measured, pins)
        table = with_sensitivity(table, self._pruning)
        self.figures.reset(self.infos, table)
        self._last_trial = self._last_evaluation = 0
        can_undo, can_redo = edits.stacks(store)
        return {
            "trials": results.no_trials(),
            "layers": table,
            "revision": revision,
            "change": Change("", (), (), revision),
            "can_undo": can_undo,
            "can_redo": can_redo,
        }

    def _edited(self, table: pd.DataFrame, cells: Cells) -> pd.DataFrame:
        """A new table with ``cells`` changed, and what was measured with these settings."""
        table = with_cells(table, cells)
        rows = sorted({row for c, (found, _) in cells.items() if c in SETTINGS for row in found})
        return with_measurements(table, self._measured, rows) if rows else table

    def _with_cells(self, table: pd.DataFrame, cells: Cells) -> pd.DataFrame:
        table = self._edited(table, cells)
        changed = {row for found, _ in cells.values() for row in found}
        self.figures.edit(table, sorted(changed))
        return table

    def judge(self, table: pd.DataFrame, cells: Cells) -> tuple[pd.DataFrame, Judged]:
        """The table with ``cells`` changed, as if they were edited, and what is known of that."""
        table = self._edited(table, cells)
        return table, self.figures.judge(table)

    def results(
        self, table: pd.DataFrame, trials: pd.DataFrame, job: JobState | None
    ) -> dict[str, Any]:
        """Params that change with what jobs have done; the arguments are what was known before."""
        updates: dict[str, Any] = {}
        fresh = self._store.measurements(self._measured_seq)
        if fresh:
            self._measured_seq = max(m.seq for m in fresh)
            self._measured.update({(m.name, m.settings): m for m in fresh})
            rows = [self.row_of[m.name] for m in fresh if m.name in self.row_of]
            updates["layers"] = with_measurements(table, self._measured, sorted(set(rows)))
        latest = jobtable.latest(self._store)
        if latest != job:
            updates["job"] = latest
        deletions = int(self._store.get(DELETIONS, 0))
        if deletions != self._deletions:
            updates |= {"deletions": deletions, "trials": results.no_trials()}
            self._deletions, self._last_trial, self._last_evaluation = deletions, 0, 0
            trials = updates["trials"]
            self.figures.forget()
        new = results.new_trials(self._store, self._last_trial)
        if new:
            self._last_trial = new[-1].id
            updates["trials"] = results.with_trials(trials, new)
            self.figures.learn(new)
        self._last_evaluation, found = evaluations_since(self._store, self._last_evaluation)
        self.figures.learn_evaluations(found)
        for key, value in results.changed_meta(self._store, self._meta).items():
            if key == "figures":
                self.figures.known(value)
            elif key == "pins":
                updates["pins"] = value
                updates["layers"] = with_pins(updates.get("layers", table), value)
            elif key == "pruning":
                updates["pruning"] = self._pruning = value
                updates["layers"] = with_sensitivity(updates.get("layers", table), value)
            elif key == "variants":
                updates["kept_variants"] = value
            else:
                updates[key] = value
        return updates | self._training.updates()
