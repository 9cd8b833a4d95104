"""One window's live view onto a project: what pages and widgets bind to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import param

from workbench.engine.errors import WrongState, WrongValue
from workbench.studio import edits, jobtable, results
from workbench.studio.columns import FLAGS, OPTIONS, PRUNE, checked, refusal
from workbench.studio.config_view import ConfigView
from workbench.studio.edits import CellEdit
from workbench.studio.export_control import ExportControl
from workbench.studio.flushing import FileTexts, ProjectFiles
from workbench.studio.following import Follower
from workbench.studio.formats_control import FormatsControl
from workbench.studio.formats_state import no_formats
from workbench.studio.graph_names import GraphNames
from workbench.studio.history_control import HistoryControl
from workbench.studio.inspections import Inspection, stored_inspection
from workbench.studio.measuring_control import MeasuringControl, Rest
from workbench.studio.project import Project
from workbench.studio.pruning_control import PruningControl
from workbench.studio.state import Change, ErrorText, ExportResult, JobState, Summary
from workbench.studio.steering import Steering
from workbench.studio.training_control import TrainingControl
from workbench.studio.training_state import Curves
from workbench.studio.variants_view import VariantsView
from workbench.studio.waiting import wait_for

if TYPE_CHECKING:
    from workbench.engine.analysis.histograms import LayerHistogram
    from workbench.engine.files.config import QuantConfig
    from workbench.studio.jobs import JobManager

__all__ = ["Change", "ErrorText", "ExportResult", "JobState", "Session", "Summary"]

LIVENESS_SECONDS = 0.5
OTHER_TEXTS = {
    "training", "quantized", "weights", "pruning", "shrunk", "kept_variants", "graph_names",
}  # fmt: skip
"""Params that the files of the project speak of besides the configuration."""


class Session(
    Steering,
    TrainingControl,
    FormatsControl,
    PruningControl,
    HistoryControl,
    MeasuringControl,
    ExportControl,
    param.Parameterized,
):
    """The live state a window binds to.

    Params change only in ``poll()`` and in the edit methods, always together in one batch, and
    tables are replaced, never changed in place. Safe to call from several threads; watchers run
    in the thread that called. Everything kept is in ``project``; two sessions on one project, in
    one process or in two, see each other's edits at their next ``poll()``.
    """

    layers = param.Parameter(doc="DataFrame of all layers, in execution order.")
    revision = param.Integer(0, doc="Of the configuration; grows with every edit of any window.")
    change = param.Parameter(None, doc="The last change batch.")
    summary = param.Parameter(Summary(), doc="The figures at the top.")
    job = param.Parameter(None, doc="The running job, or the last one.")
    trials = param.Parameter(doc="DataFrame of all trials of the project.")
    bracket = param.Parameter(None, doc="Search: lowest and highest number of float layers left.")
    ranking = param.Parameter((), doc="Layer names, most sensitive first.")
    pins = param.Dict({}, doc="Layers a search must leave quantised (True) or float (False).")
    inspected = param.Parameter({}, doc="Layers with an inspection, and when each was made.")
    training = param.Parameter(None, doc="The last training: a TrainingState, or None.")
    curves = param.Parameter(Curves(), doc="Loss, metric and clip bounds of the last training.")
    formats = param.Parameter(doc="DataFrame of layers, each alone in every number format.")
    ways = param.Dict({}, doc="How layers are to be quantised as modules, where chosen.")
    quantized = param.Parameter(None, doc="What the last quantize_modules measured and wrote.")
    weights: Any = param.Parameter((), doc="Weights taken over from trainings, newest last.")
    pruning = param.Parameter(None, doc="The last search_pruning: a PruningState, or None.")
    decomposition = param.Parameter(None, doc="The last decompose(dry_run=True), or None.")
    shrunk = param.Parameter(None, doc="The last smaller project that was made of this one.")
    origin = param.Parameter(None, doc="Of a smaller project: what it was made of, and how.")
    kept_variants: Any = param.Parameter((), doc="Named variants of the configuration, by age.")
    measuring: Any = param.Parameter(None, doc="What becomes of the background evaluation.")
    background = param.Boolean(True, doc="Whether edits are evaluated in the background.")
    exports = param.Parameter(None, doc="What the last export wrote.")
    graph_names = param.Parameter(GraphNames(), doc="Names that exports give the graph.")
    deletions = param.Integer(0, doc="How often rows were deleted from the history.")
    can_undo = param.Boolean(False)
    can_redo = param.Boolean(False)
    notice = param.String("", doc="A sentence for the user: overtaken by another window, ...")

    def __init__(self, project: Project, manager: JobManager | None = None) -> None:
        super().__init__(layers=pd.DataFrame(), trials=results.no_trials(), formats=no_formats())
        self.project = project
        self._manager = manager
        self._lock = threading.RLock()
        self._tick = -1
        self._follower = Follower(project)
        self._last_liveness = 0.0
        self._files = ProjectFiles(project, self._texts)
        self._rest = Rest()
        self._disposed = False
        self.config = ConfigView(self)
        self.variants = VariantsView(self)
        self.poll()

    # -- reading ------------------------------------------------------------------------------

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._follower.row_of)

    @property
    def read_only(self) -> bool:
        return self.project.read_only

    def row(self, name: str) -> int:
        """The row of a layer; ``WrongValue`` if there is no such layer."""
        return self._follower.row(name)

    @staticmethod
    def options(column: str) -> tuple[Any, ...]:
        """What a menu of ``column`` offers."""
        return OPTIONS.get(column, (False, True))

    def poll(self) -> bool:
        """Apply what happened since the last call, from any window or job; True if anything did."""
        with self._lock:
            if self._disposed:
                return False
            store = self.project.store
            tick, revision = store.head()
            if tick == self._tick:
                if not self._look_after_job():
                    self._files.when_quiet(self.revision)
                    self._measure_at_rest(tick)
                    return False
                tick, revision = store.head()
            updates: dict[str, Any] = {}
            if revision != self.revision or self._tick < 0:
                self._files.edited()
                updates = self._follower.configuration(self.layers, self.revision, revision)
            updates |= self._follower.results(
                updates.get("layers", self.layers), updates.get("trials", self.trials), self.job
            )
            if OTHER_TEXTS & updates.keys():
                self._files.outdated()
            self._tick = tick
            summary = self._follower.figures.summary(updates.get("layers", self.layers))
            if not results.same_summary(summary, self.summary):
                updates["summary"] = summary
            if updates:
                self.param.update(**updates)
            self._look_after_job()
            return bool(updates)

    def _look_after_job(self) -> bool:
        """Twice a second: has the process of the running job died?  True if that was new."""
        job = self.job
        if job is None or not job.active or self.read_only:
            return False
        now = time.monotonic()
        if now - self._last_liveness < LIVENESS_SECONDS:
            return False
        self._last_liveness = now
        if self._manager is not None:
            return self._manager.look_after(job)
        return jobtable.fail_if_dead(self.project.store, job.id)

    # -- editing ------------------------------------------------------------------------------

    def toggle(self, name: str, column: str = "quant_enable") -> None:
        """Turn a flag of one layer over, as this window sees it."""
        value = not bool(self.layers[column].iloc[self.row(name)])
        self._edit([name], column, value, f"{name}: {column} = {value}")

    def set_flag(self, names: Iterable[str], value: bool, column: str = "quant_enable") -> None:
        """Set a flag of many layers in one step; layers that cannot be quantised are left out."""
        names = list(names)
        self._edit(names, column, value, f"{len(names)} layers: {column} = {value}")

    def set_option(self, names: Iterable[str], column: str, value: Any) -> None:
        """Set any editable column of many layers in one step."""
        names = list(names)
        self._edit(names, column, value, f"{len(names)} layers: {column} = {value}")

    def skip_worse_than(self, cosine: float) -> int:
        """Leave every layer float whose cosine similarity is below ``cosine``; returns how many."""
        table = self.layers
        worse = table[(table["cosine"] < cosine) & table["quant_enable"]]["name"].tolist()
        if worse:
            self._edit(worse, "quant_enable", False, f"skip {len(worse)} worse than {cosine:g}")
        return len(worse)

    def set_float_layers(self, names: Iterable[str]) -> None:
        """Leave exactly these layers float and quantise all others, for example a trial's."""
        floating = set(names)
        for name in floating:
            self.row(name)
        with self._lock:
            table = self.layers
            wanted = table["eligible"] & ~table["name"].isin(floating)
            rows = [int(i) for i in (wanted != table["quant_enable"]).to_numpy().nonzero()[0]]
            values = [bool(wanted.iloc[row]) for row in rows]
            self._apply("quant_enable", rows, values, f"float: {len(floating)} layers")

    def _edit(self, names: Sequence[str], column: str, value: Any, label: str) -> None:
        value = checked(column, value)
        no_training = self.project.source.no_training
        if column == "retrain_enable" and value and no_training is not None:
            raise no_training
        with self._lock:
            table = self.layers
            rows = list(dict.fromkeys(self.row(name) for name in names))
            refused = ""
            allowed: list[int] = []
            for row in rows:
                reason = self._refusal(row, column, value)
                if reason:
                    refused = refused or f"{table['name'].iloc[row]}: {reason}"
                else:
                    allowed.append(row)
            if refused and len(rows) == 1:
                raise WrongValue(refused, where=column, hint="Choose another layer.")
            self._apply(column, allowed, [value] * len(allowed), label)
            if refused and column not in FLAGS:
                left = len(rows) - len(allowed)
                self.notice = f"{left} of {len(rows)} layers were left alone; {refused}"

    def _refusal(self, row: int, column: str, value: Any) -> str:
        layer = self._follower.infos[row]
        blocked = self.prune_obstacle(layer.name) if column in PRUNE and value else ""
        return refusal(layer, column, value, self.project.source) or blocked

    def _apply(self, column: str, rows: Sequence[int], values: Sequence[Any], label: str) -> None:
        table = self.layers
        seen_column = table[column].to_numpy()
        pairs = [(row, value) for row, value in zip(rows, values, strict=True)]
        pairs = [(row, value) for row, value in pairs if seen_column[row] != value]
        if not pairs:
            return
        seen = tuple(_plain(seen_column[row]) for row, _ in pairs)
        edit = CellEdit(column, tuple(r for r, _ in pairs), seen, tuple(v for _, v in pairs))
        self._commit([edit], label)

    def _commit(
        self,
        cells: Sequence[CellEdit],
        label: str,
        ways: Mapping[str, str | None] | None = None,
    ) -> None:
        result = edits.apply_edit(
            self.project.store, cells, label=label, base_revision=self.revision, ways=ways
        )
        if result.overtaken:
            count = sum(len(edit.rows) for edit in cells)
            self.notice = (
                f"{result.overtaken} of {count} changes were overtaken by another window, "
                "whose values stay"
            )
        self.poll()

    def use(self, name: str, settings: Mapping[str, Any]) -> None:
        """Give one layer several settings (by column) in one undoable step."""
        row = self.row(name)
        with self._lock:
            cells = []
            for column, given in settings.items():
                value, now = checked(column, given), _plain(self.layers[column].iloc[row])
                reason = self._refusal(row, column, value)
                if reason:
                    raise WrongValue(f"{name}: {reason}", where=column, hint="Choose another.")
                if value != now:
                    cells.append(CellEdit(column, (row,), (now,), (value,)))
            if cells:
                said = ", ".join(f"{edit.column} = {edit.values[0]}" for edit in cells)
                self._commit(cells, f"{name}: {said}")

    def undo(self) -> None:
        """Take the project's newest edit back, whichever window made it."""
        edits.undo(self.project.store)
        self.poll()

    def redo(self) -> None:
        edits.redo(self.project.store)
        self.poll()

    # -- jobs ---------------------------------------------------------------------------------

    def analyse(self, *, wait: bool = True) -> None:
        """Calibrate, measure every layer's similarity, and evaluate float and all quantised."""
        self.start("analyse", wait=wait)

    def inspect(
        self,
        name: str,
        *,
        algorithms: Sequence[str] | None = None,
        ada_iterations: int = 1000,
        wait: bool = True,
    ) -> None:
        """Compare the ways to quantise one layer; ``inspection`` has what was found.

        ``algorithms``: of ifmr, hfmg, minmax, arq_quantize, ada_quantize those to try; None: all
        but ``ada_quantize``, which learns for ``ada_iterations`` steps. Error: ``WrongValue`` for
        a layer that cannot be quantised.
        """
        reason = self._refusal(self.row(name), "quant_enable", True)
        if reason:
            raise WrongValue(f"{name}: {reason}", where="inspect", hint="Choose another layer.")
        chosen = None if algorithms is None else list(algorithms)
        self.start(
            "inspect", wait=wait, name=name, algorithms=chosen, ada_iterations=int(ada_iterations)
        )

    def inspection(self, name: str) -> Inspection | None:
        """What the last ``inspect`` of a layer found; None before the first."""
        self.row(name)
        return stored_inspection(self.project.store, name)

    def evaluate(self, *, wait: bool = True) -> None:
        """Calibrate and evaluate the configuration as it is now."""
        self.start("evaluate", wait=wait)

    def auto_calibrate(
        self,
        *,
        max_loss: float = 0.005,
        strategy: str = "Recover",
        sensitivity: str = "CosineSimilarity",
        objective: str = "size",
        pareto_trials: int = 60,
        wait: bool = True,
    ) -> None:
        """Search the fewest layers that must stay float for a loss of at most ``max_loss``.

        The accepted configuration becomes the project's, as one edit that can be undone.
        ``strategy``: 'Recover', 'BinarySearch', 'BinarySearchVerified', 'Greedy' or 'Pareto', which
        also chooses weight bits and algorithms and looks at ``pareto_trials`` configurations for
        the cheapest in ``objective``: 'size', 'bops' or 'latency'. ``sensitivity``:
        'CosineSimilarity', 'SQNR', 'MSE' or 'EndToEnd'. No trial is run twice in a project: a
        search that was stopped or killed goes on where it was. See ``pause``, ``pin`` and
        ``accept_best``.
        """
        from workbench.studio.searching import check_search

        asked: dict[str, Any] = {
            "max_loss": max_loss,
            "strategy": strategy,
            "sensitivity": sensitivity,
            "objective": objective,
            "pareto_trials": pareto_trials,
        }
        check_search(**asked)
        self.start("search", wait=wait, **asked | {"max_loss": float(max_loss)})

    def start(self, kind: str, *, wait: bool = False, **args: Any) -> None:
        """Start a job; with ``wait`` return when it is finished.

        A KeyboardInterrupt while waiting cancels the job; what was finished is kept. Errors:
        ``JobActive`` while another one runs, and with ``wait`` ``JobFailed`` or ``Cancelled``.
        """
        if self._manager is None:
            raise WrongState(
                "this session only looks on; it cannot start jobs",
                where=kind,
                hint="Open the project with workbench.open.",
            )
        self.flush()
        job = self._manager.submit(kind, args)
        self.poll()
        if wait:
            wait_for(self, job)

    def cancel(self) -> None:
        """Ask the running job to stop; in a worker process it ends within a second."""
        job = jobtable.latest(self.project.store)
        if job is None or not job.active:
            return
        if self._manager is not None:
            self._manager.cancel(job)
        else:
            jobtable.request_cancel(self.project.store, job.id)
        self.poll()

    # -- files --------------------------------------------------------------------------------

    def quant_config(self) -> QuantConfig:
        """The configuration as the engine takes it."""
        with self._lock:
            return self._follower.figures.config()

    def config_json(self) -> str:
        """The exact text of ``ptq.json``."""
        return self.quant_config().to_json()

    def flush(self) -> None:
        """Bring ``ptq.json`` and ``log.py`` up to date with the configuration, if they are not."""
        self._files.flush()

    def _texts(self) -> FileTexts | None:
        """What there is to write at one moment; None: nothing."""
        with self._lock:
            eligible = any(layer.eligible for layer in self._follower.infos)
            ratios = self.prune_ratios()
            if not eligible and not ratios:
                return None
            return FileTexts(
                revision=self.revision,
                config=self.quant_config() if eligible else None,
                ratios=ratios,
                aligned=self.pruning is not None and self.pruning.aligned,
                script=self.script() if eligible else "",
            )

    def script(self) -> str:
        """The Python script that does all of this again."""
        from workbench.studio.script import project_script

        with self._lock:
            return project_script(self.project, self.layers, self._follower.figures)

    def histogram(self, name: str) -> LayerHistogram | None:
        """Distributions of one layer, or None while they are not known.

        In a worker process they are asked for in the background: None now, and a later ``poll()``
        returns True when they have come. Needs a calibration (``analyse``).
        """
        self.row(name)
        found = results.stored_histogram(self.project.store, name)
        if found is None and self._manager is not None and not self.read_only:
            found = self._manager.histogram(name)
        return found

    def dispose(self) -> None:
        """Write what is not written yet and let go of the project; the job goes on.

        What cannot be written is logged: the edits are in the database, and letting go must work.
        """
        if self._disposed:
            return
        try:
            # Takes the session's lock inside the files' own: never the other way.
            self._files.try_flush()
        finally:
            with self._lock:
                if not self._disposed:
                    self._disposed = True
                    if self._manager is not None:
                        self._manager.release()
                    self.project.close()

    def __repr__(self) -> str:
        return f"<Session of {self.project.name!r} in {self.project.folder}>"


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
