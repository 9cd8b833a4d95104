"""Making a project of a smaller model, beside the one that it was made of: all of it or nothing."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from workbench.engine.errors import Cancelled, WorkbenchError, WrongValue
from workbench.engine.events import Notice
from workbench.engine.export.float_onnx import to_onnx
from workbench.engine.export.onnx_file import save_onnx
from workbench.engine.files.atomic import make_parents
from workbench.engine.graph.capture import Captured, capture
from workbench.studio.measure import OrtModel, latencies
from workbench.studio.project import (
    DataSpec,
    Project,
    ProjectSettings,
    TrainSpec,
    not_writable,
    safe_name,
)
from workbench.studio.pruning_state import Shrunk, as_stored
from workbench.studio.shrunk import FOLDER, WEIGHTS, step_file
from workbench.studio.source_spec import SourceSpec
from workbench.studio.tasks import Run

if TYPE_CHECKING:
    from collections.abc import Iterator

STAGES = 3
"""Stages of a job that ``make_project`` takes."""

STAGING = ".new-project"


@dataclass(frozen=True)
class Step:
    """What made the model smaller, as ``Shrunk`` tells it."""

    kind: str
    layers: Mapping[str, int]
    notes: Mapping[str, str]
    asked: Mapping[str, Any]


@contextmanager
def staged_project(folder: str, home: Path | None = None) -> Iterator[Path]:
    """A folder to write a project into; it becomes ``folder`` when the block succeeds.

    ``home``: of the project that is at work, one job at a time: what a job that was killed has left
    there goes with the next. Errors: ``WrongValue`` when there is something of that name,
    ``NotWritable``.
    """
    target = Path(folder)
    _require_free(target)
    try:
        make_parents(target)
        if home is not None and home.stat().st_dev == target.parent.stat().st_dev:
            outer = home / STAGING
            shutil.rmtree(outer, ignore_errors=True)
            outer.mkdir(mode=0o750)
        else:
            outer = Path(tempfile.mkdtemp(dir=target.parent, prefix=STAGING))
    except OSError as error:
        raise not_writable(target.parent, error) from error
    try:
        inner = outer / target.name
        (inner / FOLDER).mkdir(parents=True, mode=0o750)
        yield inner
        _require_free(target)
        inner.rename(target)
    except OSError as error:
        if isinstance(error, WorkbenchError):
            raise
        raise not_writable(target.parent, error) from error
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def _require_free(target: Path) -> None:
    if target.exists():
        raise WrongValue(
            f"there is something named {target.name} already",
            where=str(target),
            hint="Choose another name for the new project.",
        )


def step_number(run: Run) -> int:
    """The number of the step that this job does."""
    return len(run.workspace.project.source.steps) + 1


def make_project(
    run: Run, model: nn.Module, step: Step, staging: Path, *, metric_before: float, begun: float
) -> Shrunk:
    """Evaluate ``model``, measure it beside its base, and write its project into ``staging``.

    The files of the step itself are there already. Nothing is in the store of the base yet.
    """
    base, source, report = run.workspace.project, run.source, run.report
    target = Path(str(run.args["folder"]))
    model.eval()
    report.stage("evaluating the smaller model")
    metric = source.metric(model, source.evaluation, on_event=report, cancel=run.cancel)
    report.stage("writing the float files")
    before, after = run.workspace.capture(), capture(model, source.example, on_event=report)
    files = (
        staging / "exports" / "before_float_model.onnx",
        staging / "exports" / f"{target.name}_float_model.onnx",
    )
    speed = _measured(run, before, after, files)

    def in_target(path: Path) -> str:
        return str(target / path.relative_to(staging)) if path.exists() else ""

    _write_weights(model, staging / WEIGHTS)
    _copy_steps(base, staging)
    settings = _settings(base, target.name, staging)
    steps = [*base.source.steps, step.kind]
    arguments = {**settings.source.arguments, "steps": steps}
    settings = replace(settings, source=replace(settings.source, arguments=arguments))
    found = Shrunk(
        kind=step.kind,
        name=target.name,
        folder=str(target),
        base=str(base.folder),
        metric_name=source.metric.name,
        metric=(metric_before, float(metric)),
        parameters=(_parameters(source.model), _parameters(model)),
        bytes=(_bytes(source.model), _bytes(model)),
        macs=(_macs(before), _macs(after)),
        latency_ms=speed,
        onnx=(in_target(files[0]), in_target(files[1])),
        layers=dict(step.layers),
        notes=dict(step.notes),
        asked=dict(step.asked),
        seconds=time.perf_counter() - begun,
    )
    project = Project.create(staging, settings=settings)
    project.store.put(origin=as_stored(found))
    project.close()
    return found


def _measured(
    run: Run, before: Captured, after: Captured, files: tuple[Path, Path]
) -> tuple[float, float]:
    """Write both as float files; their milliseconds. What ONNX cannot hold is said, and is NaN."""
    threads, inputs = run.workspace.project.settings.threads, run.source.evaluation[0].inputs
    files[0].parent.mkdir(mode=0o750)
    try:
        for path, graph in zip(files, (before, after), strict=True):
            run.cancel.check()
            save_onnx(to_onnx(graph, None), str(path), suffix=".external")
        run.report.stage("measuring the speed")
        runnable = {path.name: OrtModel(path, threads=threads) for path in files}
        speed = latencies(runnable, inputs, cancel=run.cancel)
    except (Cancelled, OSError):
        raise
    except Exception as error:  # exporter and runtime raise many kinds; the model itself is whole
        run.report(Notice(f"The float files could not be compared in ONNX Runtime: {error}"[:300]))
        return math.nan, math.nan
    return speed[files[0].name][0], speed[files[1].name][0]


def finish(run: Run, found: Shrunk) -> None:
    """Note in the base's project what was made of it, and keep its live model for the new one."""
    from workbench.studio.jobs import shared_workspace

    run.store.put(shrunk=as_stored(found))
    if run.workspace.live is not None:
        path = Path(found.folder)
        run.workspace.made[path] = shared_workspace(path, run.workspace.live)


def fresh_copy(folder: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """A new project in ``target`` of the same smaller model, without anything found out of it."""
    base = Project.open(folder)
    try:
        with staged_project(os.fspath(Path(target).absolute())) as staging:
            shutil.copyfile(base.folder / WEIGHTS, staging / WEIGHTS)
            _copy_steps(base, staging)
            Project.create(staging, settings=_settings(base, base.name, staging)).close()
    finally:
        base.close()
    return Path(target)


def _settings(base: Project, name: str, staging: Path) -> ProjectSettings:
    """As the base's, of the same base and steps, with paths that mean the same from the folder."""
    old = base.settings
    dense = old.source.base
    if dense.kind in ("pt2", "onnx", "hf"):
        dense = replace(dense, name=_carried(base, dense.name, staging))
    origin = {key: value for key, value in asdict(dense).items() if value and key != "weights"}
    arguments = {"base": origin, "steps": list(old.source.steps)}
    source = SourceSpec("shrunk", old.source.name, arguments, WEIGHTS)
    data: DataSpec = old.data
    if data.kind == "stored":
        shutil.copyfile(base.data_path, staging / base.data_path.name)
    elif data.kind not in ("zoo", "python", "none"):
        data = replace(data, name=_carried(base, data.name, staging))
    train: TrainSpec = old.train
    if train.kind in ("npz", "folder"):
        train = replace(train, name=_carried(base, train.name, staging))
    return replace(old, name=safe_name(name), source=source, data=data, train=train)


def _carried(base: Project, name: str, staging: Path) -> str:
    """The path of a file or folder for the new project; what lies in the base's is copied."""
    path = (base.folder / Path(name).expanduser()).resolve()
    inside = base.folder.resolve()
    if not path.is_relative_to(inside) or path == inside:
        return str(path)
    relative = path.relative_to(inside)
    copy = staging / relative
    copy.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    if path.is_dir():
        shutil.copytree(path, copy)
    else:
        shutil.copyfile(path, copy)
        for other in path.parent.glob(f"{path.stem}*"):  # external data of an ONNX file
            if other.is_file() and not (copy.parent / other.name).exists():
                shutil.copyfile(other, copy.parent / other.name)
    return str(relative)


def _copy_steps(base: Project, staging: Path) -> None:
    if not base.source.steps:
        return
    for path in (base.folder / FOLDER).iterdir():
        number = path.name.split("-")[0]
        if path.is_file() and number.isdigit() and int(number) <= len(base.source.steps):
            shutil.copyfile(path, staging / FOLDER / path.name)


def _write_weights(model: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    state = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in model.state_dict().items()
    }
    save_file(state, path)
    path.chmod(0o640)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _macs(captured: Captured) -> int:
    return sum(layer.macs for layer in captured.layers.values())


def files_of_step(run: Run, staging: Path, kind: str, *endings: str) -> list[Path]:
    """Where the files of the step that this job does go."""
    number = step_number(run)
    return [step_file(staging, number, kind, ending) for ending in endings]
