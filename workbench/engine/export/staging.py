"""Files that appear together: written into a hidden folder beside their place, then moved."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from workbench.engine.events import CancelToken, FileWritten, OnEvent, Progress, check, emit
from workbench.engine.export.external import externalize, needs_external_data
from workbench.engine.files.atomic import FILE_MODE, make_parents

log = logging.getLogger("workbench.export")


def write_models(
    jobs: Mapping[Path, tuple[str, Callable[[], ir.Model]]],
    *,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> None:
    """Make each model of one folder and write them all or, on any error, none.

    ``jobs``: path -> (suffix of external data, how the model is made). One model is in memory at a
    time.
    """
    folder = next(iter(jobs)).parent
    for path in jobs:
        make_parents(path)
    staging = Path(tempfile.mkdtemp(dir=folder, prefix=".export-"))
    try:
        for done, (path, (suffix, build)) in enumerate(jobs.items()):
            check(cancel)
            emit(on_event, Progress("export", done, len(jobs)))
            serialize(build(), staging, path.name, suffix)
        check(cancel)
        publish(staging, folder, [path.name for path in jobs])
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    emit(on_event, Progress("export", len(jobs), len(jobs)))
    for path in jobs:
        emit(on_event, FileWritten(str(path), path.stat().st_size))


def serialize(model: ir.Model, folder: Path, name: str, suffix: str) -> None:
    """Write ``model`` into ``folder``; external data, when needed, beside it with ``suffix``."""
    if needs_external_data(model):
        externalize(model, folder, suffix)
    ir.save(model, folder / name)


def publish(staging: Path, folder: Path, models: Sequence[str]) -> None:
    """Move the staged files to ``folder``: data first, the models that refer to it last.

    Mode 0640; a WARNING for every file that is overwritten.
    """
    names = [*sorted(p.name for p in staging.iterdir() if p.name not in models), *models]
    for name in names:
        path = staging / name
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        path.chmod(FILE_MODE)
        if (folder / name).exists():
            log.warning("%s exists and is overwritten", folder / name)
    for name in names:
        (staging / name).replace(folder / name)
