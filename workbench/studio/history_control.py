"""What was ever run in a project: shown, compared, taken up again, deleted; part of a session."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import pandas as pd

from workbench.engine.errors import WrongState
from workbench.studio import comparing, edits, history
from workbench.studio.following import Follower
from workbench.studio.history import Deletion
from workbench.studio.project import Project

if TYPE_CHECKING:
    from workbench.studio.session import Session


class Remembering(Protocol):
    """Of a session, what its history needs."""

    project: Project
    layers: pd.DataFrame
    trials: pd.DataFrame
    revision: int
    _follower: Follower
    _lock: threading.RLock

    def poll(self) -> bool: ...
    def history(self) -> pd.DataFrame: ...


class HistoryControl:
    """The table of all that was run; what can be done with its rows; the report."""

    def history(self: Remembering) -> pd.DataFrame:
        """One row a trial, export, training, quantised folder or smaller model, oldest first.

        ``key`` names a row for the other calls; the figures are as in ``trials``.
        """
        return history.read_history(self.project.store, self.trials)

    def compare_entries(self: Remembering, first: str, second: str) -> pd.DataFrame:
        """Two rows of the history, by their keys, side by side; rows as ``compare`` has them."""
        table = self.history()
        rows = [history.entry_row(table, key) for key in (first, second)]
        return comparing.compare_rows(rows, (first, second))

    def use_entry(self: Remembering, key: str) -> tuple[str, ...]:
        """Make the configuration of a row the project's, as one edit; returns the float layers.

        Errors: ``WrongState`` for a row that does not know its configuration.
        """
        with self._lock:
            row = history.entry_row(self.history(), key)
            if not knows_configuration(row):
                raise WrongState(
                    f"{key} does not know which layers it quantised",
                    where="history",
                    hint="Choose a trial, or an export made of this configuration of layers.",
                )
            generated = self._follower.figures.generated_columns()
            changes = comparing.trial_edits(self.layers, row, generated)
            if changes:
                edits.apply_edit(
                    self.project.store, changes, label=key, base_revision=self.revision
                )
                self.poll()
        return tuple(row["float_layers"])

    def deletion(self: Remembering, keys: Iterable[str]) -> Deletion:
        """What ``delete`` of these rows would take away, files included."""
        return history.deletion(self.project, self.history(), keys)

    def delete(self: Remembering, keys: Iterable[str]) -> Deletion:
        """Delete rows of the history for good: this cannot be undone.

        The files that an export or a training wrote go too, if they lie in the project folder and
        no later one has written them again; files elsewhere stay. A deleted trial is run again
        when a search comes to it. Errors: ``WrongValue`` for an unknown key, ``WrongState`` for
        rows of the job that runs, ``NotWritable``.
        """
        plan = history.delete(self.project, self.history(), keys)
        self.poll()
        return plan

    def report(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write an offline HTML report of the project and return its path.

        One file with the figures, charts, tables of layers and trials, exported files and how they
        agree, configuration and script; it opens without a net. ``path`` None:
        ``exports/<project>_report.html`` in the project. Error: ``NotWritable``.
        """
        from workbench.studio.report import write_report

        return write_report(cast("Session", self), path)


def knows_configuration(row: pd.Series) -> bool:
    """Does a row of the history say which layers it left float?"""
    return row["kind"] not in history.RESULTS or row["n_float"] == row["n_float"]
