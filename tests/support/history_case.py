"""Rows of a history as jobs would have written them, and the files of exports; no model runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from workbench.engine.analysis.cost import Cost
from workbench.studio import jobtable
from workbench.studio.history import remember
from workbench.studio.project import Project
from workbench.studio.state import ErrorText, ExportedFile, ExportResult, ParityLine


def add_job(project: Project, kind: str, state: str = "finished", **args: Any) -> int:
    """A job that has ended, or with ``state`` running goes on; its number."""
    store = project.store
    job = jobtable.submit(store, kind, args, runner="thread")
    jobtable.claim(store, job, runner="thread")
    if state != "running":
        error = ErrorText("no memory left", "Use less.") if state == "failed" else None
        jobtable.finish(store, job, state, error)
    return job


def add_trial(
    project: Project,
    job: int,
    floats: tuple[str, ...],
    metric: float,
    *,
    kind: str = "probe",
    settings: dict[str, dict[str, Any]] | None = None,
) -> int:
    """A trial; its number in the project."""
    project.store.add_trial(
        job, phase="search", kind=kind, metric=metric, loss=0.98 - metric, satisfied=True,
        seconds=1.5, float_layers=floats, config_hash=f"{sorted(floats)}{settings}",
        cost=Cost(1000 + 100 * len(floats), 5_000_000), settings=settings or {},
    )  # fmt: skip
    row = project.store.connection.execute("SELECT trial FROM trials ORDER BY id DESC").fetchone()
    return int(row[0])


def add_export(
    project: Project, folder: Path, *, metric: float = 0.97, floats: tuple[str, ...] = ()
) -> int:
    """An export job with three small files in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for kind, size in (("float", 400), ("deploy", 100), ("qdq", 120)):
        path = folder / f"net_{kind}_model.onnx"
        graph = onnx.helper.make_graph([], "empty", [], [])
        onnx.save(onnx.helper.make_model(graph, doc_string="x" * size), path)
        measured = None if kind == "deploy" else metric + 0.01 * (kind == "float")
        files.append(ExportedFile(kind, str(path), size, measured, 1.0, 0.1, 400 / size))
    lines = (ParityLine("torch ≡ qdq: largest difference 0", True, 0.0, None),)
    facts = asdict(ExportResult(tuple(files), lines)) | {
        "float_layers": list(floats), "settings": {},
    }  # fmt: skip
    project.store.put(exports=facts, record_hash="abc")
    job = add_job(project, "export")
    remember(project.store, job, "export")
    return job
