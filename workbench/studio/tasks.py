"""The bodies of the jobs, the same in a worker process and in a thread."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from workbench.engine.errors import CaptureError, WrongState
from workbench.engine.events import (
    CancelToken,
    LayerMeasured,
    LayerMeasurement,
)
from workbench.engine.export.torch_module import to_fake_quant
from workbench.engine.files.record import write_record
from workbench.engine.files.sidecar import write_sidecar
from workbench.engine.flows.calibration import Calibration
from workbench.engine.graph.sources import input_names
from workbench.studio.graph_names import read_graph_names
from workbench.studio.measurements import settings_key
from workbench.studio.project import write_whole
from workbench.studio.reporter import Reporter
from workbench.studio.sources import LoadedSource
from workbench.studio.store import Store
from workbench.studio.table import SETTINGS
from workbench.studio.training_data import try_training_files
from workbench.studio.workspace import Configuration, Workspace


@dataclass(frozen=True)
class Run:
    """One run of a job: what it works on, what was asked, whom it tells, who can stop it."""

    workspace: Workspace
    job: int
    args: Mapping[str, Any]
    report: Reporter
    cancel: CancelToken

    @property
    def store(self) -> Store:
        return self.workspace.project.store

    @property
    def source(self) -> LoadedSource:
        return self.workspace.source

    def graph_names(self) -> dict[str, Any]:
        """Arguments of the engine's exports: how the project wants its graph called."""
        return read_graph_names(self.store).arguments(input_names(self.workspace.capture()))


Task = Callable[[Run], None]

WITHOUT_GRAPH = (
    "Its modules can be quantised all the same, layer for layer: see Formats, or compare_formats() "
    "and quantize_modules(). Everything else needs the graph."
)


def open_model(run: Run) -> None:
    """Load the model and its data, capture the graph, list the layers, try what it trains with."""
    run.report.stages(2)
    ensure_open(run.workspace, run.report)
    try_training_files(run.workspace.project, run.source)


def ensure_open(workspace: Workspace, report: Reporter) -> None:
    """Make the store agree with the model; results of another model or data are dropped."""
    store = workspace.project.store
    report.stage("loading the model and the data")
    source = workspace.source
    report.stage("capturing the graph")
    try:
        captured = workspace.capture(report)
    except CaptureError as error:
        known = {"model": source.title, "data": source.data_title, "graph": False}
        store.put(
            figures={**(store.get("figures") or {}), **known, "metric_name": source.metric.name}
        )
        raise CaptureError(error.message, where=error.where, hint=WITHOUT_GRAPH) from error
    layers = list(captured.layers.values())
    digest = workspace.digest
    figures = store.get("figures") or {}
    if (
        store.layers() != layers
        or store.get("model_digest") != digest
        or store.get("batch_num") != workspace.batch_num
    ):
        store.forget_results()
        store.put(batch_num=workspace.batch_num, model_digest=digest)
        ranges = {
            layer.name: _weight_range(captured.module.get_submodule(layer.name))
            for layer in layers
            if layer.has_weight
        }
        size = sum(p.numel() * p.element_size() for p in source.model.parameters())
        store.write_layers(
            layers,
            workspace.project.source,
            weight_ranges={name: value for name, value in ranges.items() if value is not None},
            float_bytes=size,
        )
        figures = {}
    notices = [*source.notices, *captured.notices]
    known = {
        **figures,
        "model": source.title,
        "data": source.data_title,
        "metric_name": source.metric.name,
        "notices": notices,
        "inputs": list(input_names(captured)),
    }
    if known != figures:
        store.put(figures=known)
    if not any(layer.eligible for layer in layers):
        return
    if not workspace.project.config_path.exists():
        write_whole(workspace.project.config_path, workspace.configuration().config.to_json())


def _weight_range(module: nn.Module) -> float | None:
    weight = getattr(module, "weight", None)
    if weight is None or weight.numel() == 0:
        return None
    return float(weight.detach().max() - weight.detach().min())


def analyse(run: Run) -> None:
    """Calibrate everything, measure each layer, evaluate float and everything quantised.

    Layers that are switched off are measured too, so that a click shows what it costs.
    """
    run.report.stages(7)
    ensure_open(run.workspace, run.report)
    source, store = run.source, run.store
    require_eligible(run.workspace)
    wanted = run.workspace.configuration(everything=True)
    run.report.settings = _settings(run.workspace, wanted)
    run.report.stage("calibrating all layers")
    calibration = run.workspace.calibrate(wanted, on_event=run.report, cancel=run.cancel)
    store.put(record_layers=len(calibration.finalize().layers))
    run.report.stage("measuring each layer", steps=len(source.calibration))
    measured = _measure(calibration, source.calibration, run.report, run.cancel)
    run.report.stage("measuring the error that has built up")
    _measure_accumulated(calibration, source.calibration[0], measured, run.report, run.cancel)
    run.report.stage("evaluating the float model")
    metric_float = evaluate_float(run)
    run.report.stage("evaluating with everything quantised")
    metric_all = _evaluate(run, calibration, wanted, "all", "all")
    figures = store.get("figures") or {}
    by_error = sorted(measured, key=lambda name: measured[name].cosine)
    run.report.flush()
    store.put(
        figures={**figures, "metric_float": metric_float, "metric_all": metric_all},
        ranking=by_error,
    )


def _measure(
    calibration: Calibration,
    batches: Sequence[tuple[Any, ...]],
    report: Reporter,
    cancel: CancelToken,
) -> dict[str, LayerMeasurement]:
    from workbench.engine.analysis.similarity import measure_layers

    return measure_layers(
        calibration.folded,
        calibration.finalize(),
        batches,
        weights=calibration.fake_weights,
        on_event=report,
        cancel=cancel,
    )


def _measure_accumulated(
    calibration: Calibration,
    batch: tuple[Any, ...],
    measured: Mapping[str, LayerMeasurement],
    report: Reporter,
    cancel: CancelToken,
) -> None:
    from workbench.engine.analysis.similarity import accumulated_cosine

    found = accumulated_cosine(
        calibration.folded,
        calibration.finalize(),
        batch,
        weights=calibration.fake_weights,
        cancel=cancel,
    )
    for name, cosine in found.items():
        if name in measured:
            one = measured[name]
            report(LayerMeasured(LayerMeasurement(name, one.cosine, one.sqnr_db, cosine)))


def evaluate_float(run: Run) -> float:
    """The float model's metric, measured once per project."""
    store, source = run.store, run.source
    known = (store.get("figures") or {}).get("metric_float")
    if known is not None:
        return float(known)
    start = time.perf_counter()
    metric = source.metric(source.model, source.evaluation, on_event=run.report, cancel=run.cancel)
    floats = [layer.name for layer in run.workspace.layers if layer.eligible]
    store.add_trial(
        run.job, phase="original", kind="float", metric=metric, loss=0.0, satisfied=True,
        seconds=time.perf_counter() - start, float_layers=floats, config_hash="float",
        cost=run.workspace.cost(None),
    )  # fmt: skip
    store.put(figures={**(store.get("figures") or {}), "metric_float": metric})
    return metric


def _evaluate(
    run: Run, calibration: Calibration, wanted: Configuration, phase: str, kind: str
) -> float:
    """The metric of a calibrated configuration, and a row in the project's trials."""
    source, store = run.source, run.store
    start = time.perf_counter()
    quantized = to_fake_quant(
        calibration.folded, calibration.finalize(), weights=calibration.fake_weights
    )
    metric = source.metric(quantized, source.evaluation, on_event=run.report, cancel=run.cancel)
    known = (store.get("figures") or {}).get("metric_float")
    store.add_trial(
        run.job, phase=phase, kind=kind, metric=metric,
        loss=None if known is None else float(known) - metric, satisfied=True,
        seconds=time.perf_counter() - start,
        float_layers=left_float(run.workspace, wanted.columns), config_hash=wanted.hash,
        cost=run.workspace.cost(wanted.config), settings=run.workspace.settings(wanted.columns),
    )  # fmt: skip
    return metric


def evaluate(run: Run) -> None:
    """Calibrate and evaluate the configuration as it is; its record becomes the project's."""
    run.report.stages(5)
    ensure_open(run.workspace, run.report)
    require_eligible(run.workspace)
    wanted = run.workspace.configuration()
    _require_enabled(wanted)
    run.report.stage("calibrating")
    calibration = run.workspace.calibrate(wanted, on_event=run.report, cancel=run.cancel)
    keep_record(run.workspace, calibration, wanted)
    run.report.stage("evaluating the float model")
    evaluate_float(run)
    run.report.stage("evaluating")
    _evaluate(run, calibration, wanted, "evaluate", "final")


def keep_record(workspace: Workspace, calibration: Calibration, wanted: Configuration) -> None:
    """Write ``ptq.json`` and the record that belongs to it."""
    project = workspace.project
    write_whole(project.config_path, wanted.config.to_json())
    write_record(project.record_path, calibration.finalize())
    write_sidecar(project.record_path, calibration.sidecar())
    project.store.put(record_hash=wanted.hash)


def export(run: Run) -> None:
    """Write the ONNX files, measure them in ONNX Runtime, check that they agree."""
    if run.args.get("method", "ptq") != "ptq":
        from workbench.studio.training_export import export_trained

        export_trained(run)
        return
    from workbench.engine.export.onnx_file import save_onnx
    from workbench.engine.export.save import save_model
    from workbench.engine.flows.ptq import modified_onnx
    from workbench.studio.exporting import check_and_measure, export_prefix, write_float

    run.report.stages(9)
    ensure_open(run.workspace, run.report)
    project = run.workspace.project
    prefix = export_prefix(project, run.args.get("prefix"))
    require_eligible(run.workspace)
    names = run.graph_names()
    wanted = run.workspace.configuration()
    _require_enabled(wanted)
    run.report.stage("calibrating")
    calibration = run.workspace.calibrate(wanted, on_event=run.report, cancel=run.cancel)
    keep_record(run.workspace, calibration, wanted)
    run.report.stage("writing the files")
    try:
        Path(prefix).parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        with tempfile.TemporaryDirectory(dir=project.folder, prefix=".export-") as folder:
            modified = os.path.join(folder, "modified.onnx")
            save_onnx(modified_onnx(calibration, **names), modified, suffix=".external")
            save_model(
                modified, str(project.record_path), prefix, on_event=run.report, cancel=run.cancel
            )
        float_path = write_float(run.workspace, prefix, names)
    except OSError as error:
        from workbench.studio.project import not_writable

        raise not_writable(Path(prefix).parent, error) from error
    module = to_fake_quant(
        calibration.folded, calibration.finalize(), weights=calibration.fake_weights
    )
    result = check_and_measure(
        run.workspace, module, prefix, float_path, report=run.report, cancel=run.cancel
    )
    made_of = {
        "float_layers": left_float(run.workspace, wanted.columns),
        "settings": run.workspace.settings(wanted.columns),
    }
    project.store.put(exports=json.loads(json.dumps(asdict(result) | made_of)))


def _settings(workspace: Workspace, wanted: Configuration) -> dict[str, str]:
    parts = [wanted.columns[column] for column in SETTINGS]
    return {
        layer.name: settings_key(*(part[row] for part in parts))
        for row, layer in enumerate(workspace.layers)
    }


def left_float(workspace: Workspace, columns: Mapping[str, Sequence[Any]]) -> list[str]:
    return [
        layer.name
        for layer, on in zip(workspace.layers, columns["quant_enable"], strict=True)
        if layer.eligible and not on
    ]


def _require_enabled(wanted: Configuration) -> None:
    if not any(wanted.columns["quant_enable"]):
        raise WrongState(
            "every layer is switched off, so there is nothing to quantise",
            where="configuration",
            hint="Switch at least one layer on.",
        )


def require_eligible(workspace: Workspace) -> None:
    if not any(layer.eligible for layer in workspace.layers):
        reasons = sorted({layer.reason for layer in workspace.layers if layer.reason})
        raise WrongState(
            "no layer of this model can be quantised",
            where="model",
            hint="Reasons: " + "; ".join(reasons[:5]) if reasons else "It has no such layers.",
        )
