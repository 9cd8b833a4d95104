"""Files that appear together: written into a hidden folder beside their place, then moved."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from workbench.engine.export.external import externalize, needs_external_data
from workbench.engine.files.atomic import FILE_MODE

log = logging.getLogger("workbench.export")


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
