"""Fingerprints: what a cached trial depends on, so that nothing stale is ever taken for known."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import nn

_Digest = hashlib.blake2b


def digest_of(*parts: object) -> str:
    """One hash of plain values, tensors and arrays, and containers of them."""
    digest = _Digest(digest_size=16)
    for part in parts:
        _add(digest, part)
    return digest.hexdigest()


def model_digest(model: nn.Module) -> str:
    """A hash of a model's class, structure and tensors; equal on every machine."""
    return digest_of(type(model).__qualname__, repr(model), dict(model.state_dict()))


def identity_of(thing: object) -> str:
    """What an evaluator or a sensitivity is: its attribute ``identity`` when that is a string.

    Otherwise a hash of its class, the class's source, and its attributes that are plain values,
    arrays, tensors or functions. What hides behind other objects (a data loader's files, say) is
    not seen: give ``identity`` when that may change between runs of one project.
    """
    given = getattr(thing, "identity", None)
    if isinstance(given, str):
        return given
    kind = type(thing)
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        source = ""
    attributes = dict(sorted(getattr(thing, "__dict__", {}).items()))
    return digest_of(kind.__module__, kind.__qualname__, source, attributes)


def _add(digest: hashlib.blake2b, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
        if data.numel():
            digest.update(data.view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"array {value.dtype} {value.shape};".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)};".encode())
        for key, item in value.items():
            _add(digest, key)
            _add(digest, item)
    elif isinstance(value, list | tuple):
        digest.update(f"sequence {len(value)};".encode())
        for item in value:
            _add(digest, item)
    elif isinstance(value, str | bytes | int | float | bool | Path | np.generic) or value is None:
        digest.update(f"{value!r};".encode())
    elif inspect.isfunction(value):
        digest.update(f"function {value.__module__}.{value.__qualname__};".encode())
        _add_code(digest, value.__code__)
        _add(digest, value.__defaults__)
    else:
        digest.update(f"object {type(value).__module__}.{type(value).__qualname__};".encode())


def _add_code(digest: hashlib.blake2b, code: CodeType) -> None:
    """What a function does: an edit of its body changes this, a new place in the file does not."""
    digest.update(code.co_code)
    _add(digest, code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _add_code(digest, constant)
        elif isinstance(constant, frozenset):  # its order differs between processes
            digest.update(f"{sorted(map(repr, constant))};".encode())
        else:
            digest.update(f"{constant!r};".encode())
