"""One ONNX model to one path, whole or not at all, with external data when it is large."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from workbench.engine.export.staging import write_models


def save_onnx(model: ir.Model, path: str | Path, *, suffix: str = ".external") -> None:
    """Write ``model`` to ``path``; external tensors are called ``<initializer><suffix>``."""
    target = Path(path).absolute()
    write_models({target: (suffix, lambda: model)})
