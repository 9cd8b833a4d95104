"""The job of tensor decomposition: say what would become of each layer, or do it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.engine.errors import WrongState
from workbench.engine.flows.decompose import auto_decomposition
from workbench.engine.graph.capture import Captured, copy_model
from workbench.engine.graph.copying import copy_for_training
from workbench.studio.pruning_state import DecomposedLayer, DecompositionState, as_stored
from workbench.studio.shrinking import (
    STAGES,
    Step,
    files_of_step,
    finish,
    make_project,
    staged_project,
)
from workbench.studio.tasks import Run, ensure_open, evaluate_float

NAN = float("nan")


def decompose(run: Run) -> None:
    """The job; the plan of it is kept in either case, so that the page can show the table."""
    begun = time.perf_counter()
    dry_run = bool(run.args["dry_run"])
    run.report.stages(3 if dry_run else 4 + STAGES)
    ensure_open(run.workspace, run.report)
    options: dict[str, Any] = {**run.args["options"], "seed": run.workspace.project.settings.seed}
    if dry_run:
        _dry_run(run, options, begun)
        return
    run.report.stage("evaluating the float model")
    metric_before = evaluate_float(run)
    run.report.stage("decomposing the layers")
    with staged_project(str(run.args["folder"]), run.workspace.project.folder) as staging:
        (info,) = files_of_step(run, staging, "decompose", "json")
        model, changes = auto_decomposition(
            copy_for_training(run.source.model), info,
            on_event=run.report, cancel=run.cancel, **options,
        )  # fmt: skip
        report: list[dict[str, Any]] = model.decomposition_report_  # type: ignore[assignment]
        notes = {row["name"]: row["skipped"] for row in report if row["skipped"]}
        if not changes:
            raise WrongState(
                "no layer would be decomposed",
                where="model",
                hint=_why(notes) or "It has no convolution of two dimensions.",
            )
        layers = {row["name"]: int(row["rank"]) for row in report if not row["skipped"]}
        found = make_project(
            run, model, Step("decompose", layers, notes, {"options": run.args["options"]}), staging,
            metric_before=metric_before, begun=begun,
        )  # fmt: skip
    finish(run, found)


def _dry_run(run: Run, options: Mapping[str, Any], begun: float) -> None:
    run.report.stage("looking at the spectra of the layers")
    model, _ = auto_decomposition(
        copy_model(run.source.model), dry_run=True,
        on_event=run.report, cancel=run.cancel, **options,
    )  # fmt: skip
    rows = _rows(model.decomposition_report_, run.workspace.capture())  # type: ignore[arg-type]
    parameters = sum(p.numel() for p in run.source.model.parameters())
    macs = sum(layer.macs for layer in run.workspace.layers)
    state = DecompositionState(
        options=dict(options),
        layers=rows,
        parameters=parameters,
        parameters_after=parameters + sum(r.parameters_after - r.parameters for r in rows),
        macs=macs,
        macs_after=macs + sum(r.macs_after - r.macs for r in rows),
        seconds=time.perf_counter() - begun,
    )
    run.store.put(decomposition=as_stored(state))


def _rows(report: Sequence[Mapping[str, Any]], captured: Captured) -> tuple[DecomposedLayer, ...]:
    rows = []
    for row in report:
        layer = captured.layers.get(row["name"])
        macs = 0 if layer is None else layer.macs
        rows.append(
            DecomposedLayer(
                name=row["name"],
                kernel="" if layer is None else "×".join(map(str, layer.weight_shape)),
                mode=row["mode"],
                rank=NAN if row["rank"] is None else float(row["rank"]),
                error=NAN if row["relative_error"] is None else float(row["relative_error"]),
                macs=macs,
                macs_after=round(macs * row["macs_after"] / row["macs"]) if row["macs"] else macs,
                parameters=row["parameters"],
                parameters_after=row["parameters_after"],
                skipped=row["skipped"] or "",
            )
        )
    return tuple(rows)


def _why(notes: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in list(notes.items())[:5])
