"""The search job: trials into the project, the answer into the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from workbench.engine.errors import Cancelled, WrongValue
from workbench.engine.events import Event, TrialFinished
from workbench.studio import edits, jobtable, ptq
from workbench.studio.edits import CellEdit
from workbench.studio.pins import read_pins
from workbench.studio.table import SETTINGS
from workbench.studio.tasks import (
    Run,
    ensure_open,
    keep_record,
    left_float,
    require_eligible,
)
from workbench.studio.workspace import Configuration, Workspace

DEFAULT_STRATEGY = "Recover"
DEFAULT_SENSITIVITY = "CosineSimilarity"
PARETO_ARGUMENTS = ("objective", "pareto_trials")


def search(run: Run) -> None:
    """Find the fewest layers that must stay float; the answer becomes the configuration."""
    from workbench.engine.search.auto_calibration import search_configuration
    from workbench.engine.search.cache import TrialCache
    from workbench.engine.search.identity import digest_of
    from workbench.studio.evaluator import studio_evaluator

    asked = {
        "max_loss": run.args.get("max_loss", 0.005),
        "strategy": run.args.get("strategy", DEFAULT_STRATEGY),
        "sensitivity": run.args.get("sensitivity", DEFAULT_SENSITIVITY),
    }
    pareto = {key: run.args[key] for key in PARETO_ARGUMENTS if key in run.args}
    check_search(**asked, **pareto)
    max_loss = float(asked["max_loss"])
    if asked["strategy"] == "Pareto":
        asked |= pareto
    run.report.stages(3)
    ensure_open(run.workspace, run.report)
    store = run.store
    require_eligible(run.workspace)
    wanted = run.workspace.configuration(everything=True)
    store.put(bracket=None, ranking=[], search=asked)
    run.report.stage("searching", known_length=False)

    def on_event(event: Event) -> None:
        run.report(event)
        if isinstance(event, TrialFinished):
            _keep_trial(run, wanted, event)

    captured = run.workspace.capture()
    evaluator = studio_evaluator(
        run.source, captured.dynamic_batch, max_loss, on_event, run.cancel,
        identity=digest_of(run.workspace.digest, run.source.metric.name, run.source.metric.score),
    )  # fmt: skip
    result = search_configuration(
        run.source.model,
        captured,
        wanted.config,
        evaluator,
        strategy=asked["strategy"],
        sensitivity=asked["sensitivity"],
        **pareto,
        cache=TrialCache(run.workspace.project.folder),
        pins=lambda: {n: on for n, on in read_pins(store).items() if n in wanted.config.layers},
        calibration_data=[(batch, {}) for batch in run.source.calibration],
        seed=run.workspace.project.settings.seed,
        on_event=on_event,
        cancel=run.cancel,
    )
    run.report.flush()
    accepted = ptq.to_columns(result.config, run.workspace.layers, wanted.columns)
    final = run.workspace.with_columns(0, accepted)
    # Who stops the search in this very moment may be about to choose another answer.
    if jobtable.cancel_requested(store, run.job):
        raise Cancelled("cancelled by the user")
    store.put(search={**asked, "pins": read_pins(store), "answer": final.hash})
    _apply(run.workspace, accepted)
    if result.calibration is not None:
        run.workspace.keep(final.hash, result.calibration)
        keep_record(run.workspace, result.calibration, final)


def _keep_trial(run: Run, wanted: Configuration, event: TrialFinished) -> None:
    from workbench.engine.search.judging import Choice
    from workbench.engine.search.variants import with_choices

    store, workspace = run.store, run.workspace
    kind = {"original": "float", "all": "all", "final": "final"}.get(event.phase, "probe")
    choices = {name: Choice(True, variant) for name, variant in event.variants}
    choices |= dict.fromkeys(event.float_layers, Choice(False))
    config = with_choices(wanted.config, workspace.capture().layers, choices)
    columns = ptq.to_columns(config, workspace.layers, wanted.columns)
    judged = workspace.with_columns(0, columns)
    config_hash = "float" if kind == "float" else judged.hash
    if event.share < 1.0:
        config_hash = ""  # an estimate, which must not pass for the configuration's metric
    store.add_trial(
        run.job, phase=event.phase, kind=kind, metric=event.metric,
        loss=event.loss, satisfied=event.satisfied, seconds=event.seconds,
        float_layers=left_float(workspace, columns), config_hash=config_hash,
        share=event.share, cached=event.cached, cost=workspace.cost(judged.config),
        settings=workspace.settings(columns),
    )  # fmt: skip
    key = {"float": "metric_float", "all": "metric_all"}.get(kind)
    if key and event.metric is not None:
        store.put(figures={**(store.get("figures") or {}), key: event.metric})


def _apply(workspace: Workspace, accepted: Mapping[str, Sequence[Any]]) -> None:
    """Make ``accepted`` the configuration, as one edit that a user can undo."""
    store = workspace.project.store
    revision, columns = store.configuration()
    changes = []
    for column in ("quant_enable", *SETTINGS):
        pairs = zip(columns[column], accepted[column], strict=True)
        rows = tuple(row for row, (now, new) in enumerate(pairs) if now != new)
        if rows:
            seen, values = columns[column], accepted[column]
            changes.append(
                CellEdit(column, rows, tuple(seen[r] for r in rows), tuple(values[r] for r in rows))
            )
    edits.apply_edit(store, changes, label="auto-calibration", base_revision=revision)


def check_search(*, max_loss: Any, strategy: Any, sensitivity: Any, **pareto: Any) -> None:
    """Errors: ``WrongValue``, ``WrongType`` or ``WrongState`` for what no search can run with."""
    from workbench.engine.search.strategies import resolve_sensitivity, resolve_strategy

    if (
        isinstance(max_loss, bool)
        or not isinstance(max_loss, Real)
        or not 0 <= float(max_loss) < 1e9
    ):
        raise WrongValue(
            f"max_loss is {max_loss!r}; allowed: a number of at least 0", where="search"
        )
    resolve_strategy(strategy, **pareto)
    resolve_sensitivity(sensitivity)
