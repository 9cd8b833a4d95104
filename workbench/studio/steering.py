"""What steers a search while it runs, and what is done with its trials; part of a session."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Protocol

import pandas as pd

from workbench.engine.errors import WrongState, WrongValue
from workbench.studio import comparing, edits, jobtable, pins
from workbench.studio.following import Follower
from workbench.studio.project import Project
from workbench.studio.state import JobState


class Steered(Protocol):
    """Of a session, what steering needs."""

    project: Project
    layers: pd.DataFrame
    trials: pd.DataFrame
    job: JobState | None
    revision: int
    _follower: Follower
    _lock: threading.RLock

    def row(self, name: str) -> int: ...
    def poll(self) -> bool: ...
    def cancel(self) -> None: ...
    def use_trial(self, trial: int) -> tuple[str, ...]: ...
    def _hold(self, on: bool) -> None: ...


class Steering:
    """Pause and resume, pins, the best trial so far, any trial, two trials side by side."""

    def pause(self: Steered) -> None:
        """Hold the running job at its next step; it stays there until ``resume`` or ``cancel``."""
        self._hold(True)

    def resume(self: Steered) -> None:
        """Let a paused job go on."""
        self._hold(False)

    def _hold(self: Steered, on: bool) -> None:
        job = jobtable.latest(self.project.store)
        if job is not None and job.active:
            jobtable.request_pause(self.project.store, job.id, on)
            self.poll()

    def accept_best(self: Steered) -> tuple[str, ...]:
        """Stop the search and take its best passing trial so far; returns the layers left float.

        The best is the one with the fewest float layers, with strategy 'Pareto' the cheapest one
        (by size where the objective is the latency). It becomes the configuration, as one edit that
        can be undone. Errors: ``WrongState`` while no trial has passed; the search goes on.
        """
        self.poll()
        job = self.job
        if job is None or job.kind != "search":
            raise WrongState(
                "no search has run, so there is nothing to accept",
                where="search",
                hint="Start one with auto_calibrate.",
            )
        asked = self.project.store.get("search") or {}
        by = "n_float"
        if asked.get("strategy") == "Pareto":
            by = "bops" if asked.get("objective") == "bops" else "size"
        best = comparing.best_trial(self.trials, job.id, by)
        self.cancel()
        return self.use_trial(int(best["trial"]))

    def use_trial(self: Steered, trial: int) -> tuple[str, ...]:
        """Make a trial's configuration the project's, as one edit; returns the layers left float.

        Bits and algorithms are restored too, where the trial knows them.
        """
        with self._lock:
            row = comparing.trial_row(self.trials, trial)
            generated = self._follower.figures.generated_columns()
            changes = comparing.trial_edits(self.layers, row, generated)
            if changes:
                edits.apply_edit(
                    self.project.store, changes,
                    label=f"trial {trial}", base_revision=self.revision,
                )  # fmt: skip
                self.poll()
        return tuple(row["float_layers"])

    @property
    def best_float_layers(self: Steered) -> tuple[str, ...] | None:
        """Of the best passing trial of the last search; None while none has passed."""
        return comparing.best_floats(self.trials)

    def compare(self: Steered, first: int, second: int) -> pd.DataFrame:
        """Two trials, by their numbers, side by side: their figures, and the layers that differ."""
        return comparing.compare(self.trials, first, second)

    def pin(self: Steered, names: str | Iterable[str], value: bool | None) -> None:
        """Hold layers quantised (True) or float (False) in every search, or let them go (None).

        A search that runs obeys from its next trial on. The configuration stays as it is.
        """
        wanted = [names] if isinstance(names, str) else list(names)
        for name in wanted:
            info = self._follower.infos[self.row(name)]
            if value is not None and not info.eligible:
                reason = info.reason or "the layer cannot be quantised"
                raise WrongValue(f"{name}: {reason}", where="pin", hint="Choose another layer.")
        pins.write_pins(self.project.store, wanted, None if value is None else bool(value))
        self.poll()
