"""Initializers in files of their own, for models too large for one protobuf message.

Source: chapter 10 section 13.1, decision D24, index decision 8.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

LIMIT_BYTES = 2_000_000_000
"""A model whose tensors take this many bytes or more is written with external data."""

MINIMUM_BYTES = 1_000_000
"""Initializers of at least this size go external then."""

_LONGEST_NAME = 255
_FORBIDDEN = '/\\:*?"<>|\0' if os.name == "nt" else "/\0"
"""Characters that no file name may hold here: only those are replaced (D24)."""
_MARK = "workbench.external"


def needs_external_data(model: ir.Model) -> bool:
    """True when the model is over the limit or came with external data."""
    values = list(model.graph.initializers.values())
    if model.meta.get(_MARK) or any(_is_external(v) for v in values):
        return True
    return sum(_size(v) for v in values) >= LIMIT_BYTES


def remember_external(model: ir.Model) -> None:
    """Note which initializers are external now: rewriting them must not pull them inside."""
    values = model.graph.initializers.values()
    model.meta[_MARK] = frozenset(v.name for v in values if _is_external(v))


def externalize(model: ir.Model, folder: Path, suffix: str) -> list[Path]:
    """Write the large initializers of ``model`` into ``folder``, one file each, and refer to them.

    The files are called ``<initializer><suffix>`` (characters that a file name cannot hold become
    ``_``). Initializers that were external before become external again, under the new name.
    """
    written: list[Path] = []
    taken: set[str] = set()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or value.name is None:
            continue
        was_external = _is_external(value) or value.name in model.meta.get(_MARK, ())
        if not was_external and _size(value) < MINIMUM_BYTES:
            continue
        name = _file_name(value.name, suffix, taken)
        path = folder / name
        with path.open("wb") as stream:
            write_tensor(tensor, stream)
        value.const_value = ir.ExternalTensor(
            location=name,
            offset=0,
            length=path.stat().st_size,
            dtype=tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=value.name,
            base_dir=folder,
        )
        written.append(path)
    return written


def write_tensor(tensor: ir.TensorProtocol, stream: BinaryIO) -> None:
    """Raw little-endian bytes, without a second copy where the tensor knows how."""
    if hasattr(tensor, "tofile"):
        tensor.tofile(stream)
    else:
        stream.write(tensor.tobytes())


def _is_external(value: ir.Value) -> bool:
    return isinstance(value.const_value, ir.ExternalTensor)


def _size(value: ir.Value) -> int:
    return value.const_value.nbytes if value.const_value is not None else 0


def _file_name(initializer: str, suffix: str, taken: Iterable[str]) -> str:
    stem = "".join("_" if c in _FORBIDDEN else c for c in initializer)
    if len(os.fsencode(stem + suffix)) > _LONGEST_NAME or stem + suffix in taken:
        stem = f"{stem[:100]}_{hashlib.sha256(initializer.encode()).hexdigest()[:16]}"
    assert isinstance(taken, set)
    taken.add(stem + suffix)
    return stem + suffix
