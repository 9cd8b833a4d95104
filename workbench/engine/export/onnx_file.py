"""One ONNX model to one path, whole or not at all, with external data when it is large."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import onnx_ir as ir

from workbench.engine.export.staging import publish, serialize
from workbench.engine.files.atomic import make_parents


def save_onnx(model: ir.Model, path: str | Path, *, suffix: str = ".external") -> None:
    """Write ``model`` to ``path``; external tensors are called ``<initializer><suffix>``."""
    target = Path(path).absolute()
    make_parents(target)
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=".export-"))
    try:
        serialize(model, staging, target.name, suffix)
        publish(staging, target.parent, [target.name])
    finally:
        shutil.rmtree(staging, ignore_errors=True)
