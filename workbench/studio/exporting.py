"""Export: where the files go, the float file for Netron, measurements and parity."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.charts.formats import percent
from workbench.engine.errors import WorkbenchError, WrongType
from workbench.engine.events import CancelToken, Notice
from workbench.engine.export.float_onnx import to_onnx
from workbench.engine.export.onnx_file import save_onnx
from workbench.engine.export.save import output_paths
from workbench.studio.measure import OrtModel, latencies, size_on_disk
from workbench.studio.project import Project, safe_name
from workbench.studio.reporter import Reporter
from workbench.studio.state import ExportedFile, ExportResult, ParityLine
from workbench.studio.workspace import Workspace

if TYPE_CHECKING:
    from workbench.engine.export.verify import Parity

FLOAT_TOLERANCE = 1e-4
HALF_TOLERANCE = 1e-2
"""By how much of the largest output a float network may differ in ONNX Runtime."""

TRAINED_TOLERANCE = 0.01
"""By how much of itself the metric of a trained network may differ in ONNX Runtime."""


@dataclass(frozen=True)
class Trained:
    """What a trained network's metric was in torch, and what it is in its file."""

    metric: str
    in_torch: float
    in_file: float


def export_prefix(project: Project, prefix: Any, method: str = "ptq") -> str:
    """Folder and beginning of the file names; None: ``exports/<project>`` in the project."""
    if prefix is None:
        ending = "" if method == "ptq" else f"_{method}"
        return str(project.exports / (safe_name(project.name) + ending))
    if not isinstance(prefix, str):
        raise WrongType(f"prefix is {prefix!r}; it must be text", where="export")
    folder, name = os.path.split(prefix)
    return os.path.join(os.path.abspath(folder or "."), safe_name(name, default="model"))


def write_float(workspace: Workspace, prefix: str, names: Mapping[str, Any]) -> Path:
    """``<prefix>_float_model.onnx``, the unquantised graph for side-by-side viewing."""
    path = Path(f"{prefix}_float_model.onnx")
    save_onnx(to_onnx(workspace.capture(), None, **names), str(path), suffix=".external")
    return path


def check_and_measure(
    workspace: Workspace,
    module: nn.Module,
    prefix: str,
    float_path: Path,
    *,
    report: Reporter,
    cancel: CancelToken,
    method: str = "ptq",
) -> ExportResult:
    """Run what was written; ``module`` is what the files shall compute, in torch."""
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
    trained = None
    if method != "ptq" and "fake_quant" in scores:
        before = float((workspace.project.store.get("training") or {}).get("metric", math.nan))
        trained = Trained(source.metric.name, before, scores["fake_quant"])
    parity = (*_parity(workspace, module, prefix, trained, report, cancel), *problems)
    return ExportResult(_listed(workspace, files, scores, speed), parity, method)


def measure_floats(
    workspace: Workspace,
    module: nn.Module,
    files: Mapping[str, Path],
    *,
    report: Reporter,
    cancel: CancelToken,
    method: str,
) -> ExportResult:
    """Run float files by kind, the project's own as 'float'; the others compute ``module``."""
    source = workspace.source
    runnable, scores, problems = _evaluate_files(workspace, files, report, cancel)
    report.stage("measuring the speed")
    speed = latencies(runnable, source.evaluation[0].inputs, cancel=cancel) if runnable else {}
    report.stage("checking that the files agree")
    batch = source.calibration[0]
    with torch.no_grad():
        wanted = _tensors(module(*batch))
    parity = []
    for kind, model in runnable.items():
        if kind != "float":
            parity.append(_float_parity(files[kind].name, wanted, _tensors(model(*batch))))
    return ExportResult(_listed(workspace, files, scores, speed), (*parity, *problems), method)


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output
    return [tensor for part in parts for tensor in _tensors(part)]


def _float_parity(name: str, wanted: Sequence[Tensor], found: Sequence[Tensor]) -> ParityLine:
    """Two runtimes add in another order: a difference of that size is none."""
    largest, ok = 0.0, True
    for a, b in zip(wanted, found, strict=True):
        half = a.dtype in (torch.float16, torch.bfloat16)
        difference = float((a.double() - b.double()).abs().max())
        largest = max(largest, difference)
        tolerance = HALF_TOLERANCE if half else FLOAT_TOLERANCE
        ok &= difference <= tolerance * float(a.double().abs().max())
    words = f"network as trained {'≡' if ok else '≠'} {name}: largest difference {largest:.3g}"
    return ParityLine(words, ok, largest, None)


def _listed(
    workspace: Workspace,
    files: Mapping[str, Path],
    scores: Mapping[str, float],
    speed: Mapping[str, tuple[float, float]],
) -> tuple[ExportedFile, ...]:
    float_size = size_on_disk(files["float"])
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
    return tuple(listed)


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
    module: nn.Module,
    prefix: str,
    trained: Trained | None,
    report: Reporter,
    cancel: CancelToken,
) -> tuple[ParityLine, ...]:
    from workbench.engine.export.verify import DEPLOY, TORCH, verify_export

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
        if trained is not None and TORCH in (one.left, one.right):
            if DEPLOY not in (one.left, one.right):
                lines.append(_trained_parity(one, trained))
            continue
        largest = f"largest difference {one.max_abs:.3g} ({one.max_steps:.2g} steps)"
        beyond = one.share_beyond_one_step
        share = f"{percent(beyond, 2)} of the values differ by more than one step"
        if one.ok and one.max_steps <= 1:
            words = f"{one.left} ≡ {one.right}: {largest}"
        elif one.ok:
            words = f"{one.left} ≈ {one.right}: {share}, {largest}"
        else:
            first = f", first at {one.first_layer}" if one.first_layer else ""
            words = f"{one.left} ≠ {one.right}{first}: {share}, {largest}"
        lines.append(ParityLine(words, one.ok, float(one.max_abs), one.first_layer))
    return tuple(lines)


def _trained_parity(one: Parity, trained: Trained) -> ParityLine:
    """A network in training folds no batch norm and rounds elsewhere than its files do.

    A value on a rounding border then takes the neighbouring code, and the difference spreads; what
    counts is whether the metric is the same.
    """
    a, b = trained.in_torch, trained.in_file
    ok = abs(a - b) <= TRAINED_TOLERANCE * max(abs(a), abs(b))
    words = (
        f"network as trained {'≈' if ok else '≠'} {one.right}: {trained.metric} {a:.4f} and "
        f"{b:.4f}; their difference lies {one.snr_db:.0f} dB below the outputs"
    )
    return ParityLine(words, ok, float(one.max_abs), None if ok else one.first_layer)
