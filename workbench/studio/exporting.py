"""Export: where the files go, the float file for Netron, measurements and parity."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.engine.errors import WorkbenchError, WrongType
from workbench.engine.events import CancelToken, Notice
from workbench.engine.export.float_onnx import to_onnx
from workbench.engine.export.onnx_file import save_onnx
from workbench.engine.export.save import output_paths
from workbench.engine.export.torch_module import to_fake_quant
from workbench.engine.flows.calibration import Calibration
from workbench.studio.measure import OrtModel, latencies, size_on_disk
from workbench.studio.project import Project, safe_name
from workbench.studio.reporter import Reporter
from workbench.studio.state import ExportedFile, ExportResult, ParityLine
from workbench.studio.workspace import Workspace


def export_prefix(project: Project, prefix: Any) -> str:
    """Folder and beginning of the file names; None: ``exports/<project>`` in the project."""
    if prefix is None:
        return str(project.exports / safe_name(project.name))
    if not isinstance(prefix, str):
        raise WrongType(f"prefix is {prefix!r}; it must be text", where="export")
    folder, name = os.path.split(prefix)
    return os.path.join(os.path.abspath(folder or "."), safe_name(name, default="model"))


def write_float(workspace: Workspace, prefix: str) -> Path:
    """``<prefix>_float_model.onnx``, the unquantised graph for side-by-side viewing."""
    path = Path(f"{prefix}_float_model.onnx")
    save_onnx(to_onnx(workspace.capture(), None), str(path), suffix=".external")
    return path


def check_and_measure(
    workspace: Workspace,
    calibration: Calibration,
    prefix: str,
    float_path: Path,
    *,
    report: Reporter,
    cancel: CancelToken,
) -> ExportResult:
    source = workspace.source
    paths = output_paths(prefix)
    files = {
        "float": float_path,
        "fake_quant": paths.fake_quant,
        "deploy": paths.deploy,
        "qdq": paths.qdq,
    }
    files = {kind: path for kind, path in files.items() if path.exists()}
    runnable, scores, problems = _evaluate_files(workspace, files, report, cancel)
    report.stage("measuring the speed")
    speed = latencies(runnable, source.evaluation[0].inputs, cancel=cancel) if runnable else {}
    report.stage("checking that the files agree")
    parity = (*_parity(workspace, calibration, prefix, report, cancel), *problems)
    float_size = size_on_disk(float_path)
    listed = []
    for kind, path in files.items():
        size = size_on_disk(path)
        median, spread = speed.get(kind, (None, None))
        metric = scores.get(kind)
        if kind == "float":
            metric = (workspace.project.store.get("figures") or {}).get("metric_float")
        listed.append(
            ExportedFile(kind, str(path), size, metric, median, spread, float_size / max(1, size))
        )
    return ExportResult(tuple(listed), parity)


def _evaluate_files(
    workspace: Workspace, files: Mapping[str, Path], report: Reporter, cancel: CancelToken
) -> tuple[dict[str, OrtModel], dict[str, float], list[ParityLine]]:
    """(files that run, their metrics, one line for each that does not).

    The deploy file is left out: its operators belong to the target device. The float file's metric
    is known, so that it only has to show that it runs.
    """
    source, threads = workspace.source, workspace.project.settings.threads
    runnable: dict[str, OrtModel] = {}
    scores: dict[str, float] = {}
    problems: list[ParityLine] = []
    for kind, path in files.items():
        if kind == "deploy":
            continue
        report.stage(f"evaluating {path.name} in ONNX Runtime")
        try:
            model = OrtModel(path, threads=threads)
            batches = source.evaluation[:1] if kind == "float" else source.evaluation
            score = source.metric(model, batches, on_event=report, cancel=cancel)
        except WorkbenchError:
            raise
        except Exception as error:  # ONNX Runtime raises many kinds; the file stays listed
            words = f"{path.name} does not run in ONNX Runtime: {str(error)[:300]}"
            problems.append(ParityLine(words, False, float("nan"), None))
            report(Notice(words))
            continue
        runnable[kind] = model
        if kind != "float":
            scores[kind] = score
    return runnable, scores, problems


def _parity(
    workspace: Workspace,
    calibration: Calibration,
    prefix: str,
    report: Reporter,
    cancel: CancelToken,
) -> tuple[ParityLine, ...]:
    from workbench.engine.export.verify import verify_export

    module = to_fake_quant(
        calibration.folded, calibration.finalize(), weights=calibration.fake_weights
    )
    try:
        found = verify_export(
            module, prefix, workspace.source.calibration[:1], on_event=report, cancel=cancel
        )
    except WorkbenchError as error:
        if type(error).__name__ == "Cancelled":
            raise
        return (ParityLine(f"could not be checked: {error}", False, float("nan"), None),)
    lines = []
    for one in found:
        largest = f"largest difference {one.max_abs:.3g} ({one.max_steps:.2g} steps)"
        share = f"{one.share_beyond_one_step:.2%} of the values differ by more than one step"
        if one.ok and one.max_steps <= 1:
            words = f"{one.left} ≡ {one.right}: {largest}"
        elif one.ok:
            words = f"{one.left} ≈ {one.right}: {share}, {largest}"
        else:
            first = f", first at {one.first_layer}" if one.first_layer else ""
            words = f"{one.left} ≠ {one.right}{first}: {share}, {largest}"
        lines.append(ParityLine(words, one.ok, float(one.max_abs), one.first_layer))
    return tuple(lines)
