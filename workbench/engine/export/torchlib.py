"""The operators that torch's exporter knows, read once a process instead of at every export."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from unittest import mock

from torch.onnx._internal.exporter._registration import ONNXRegistry

_read = ONNXRegistry.from_torchlib
_known: dict[int, ONNXRegistry] = {}


def _from_torchlib(*, opset_version: int) -> ONNXRegistry:
    """What torch's method of this name returns: a table that is the caller's own."""
    if opset_version not in _known:
        _known[opset_version] = _read(opset_version=opset_version)
    registry = copy.copy(_known[opset_version])
    # An export inserts its own translations into these lists.
    registry.functions = {target: [*known] for target, known in registry.functions.items()}
    return registry


@contextlib.contextmanager
def kept_torchlib() -> Iterator[None]:
    """Within it ``torch.onnx.export`` gets a copy of the table of operators that was read first.

    It would parse the source of a thousand functions for their signatures at each call, which
    takes longer than a small network. Enter it within ``quiet()``, which allows one export a time.
    """
    with mock.patch.object(ONNXRegistry, "from_torchlib", staticmethod(_from_torchlib)):
        yield
