"""Constants of a graph: initialisers and the outputs of Constant nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The constant that ``value`` is, or None: an initializer or the output of a Constant node."""
    if value is None or value.is_graph_input():
        return None
    return ir.convenience.get_const_tensor(value)


def constant_array(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The numbers of ``constant_tensor``."""
    tensor = constant_tensor(value)
    return None if tensor is None else tensor.numpy()


def derived(
    source: ir.TensorProtocol,
    compute: Callable[[NDArray[np.generic]], NDArray[np.generic]],
    shape: Sequence[int],
    dtype: ir.DataType,
) -> ir.TensorProtocol:
    """``compute(source)`` of the given shape and type, made anew each time it is read.

    A weight is read once, when its file is written. Made only then, one weight is in memory at a
    time, however large the model; the pages of an external source are given back as well.
    """

    def evaluate() -> ir.TensorProtocol:
        made = compute(source.numpy())
        if made.base is not None:
            made = made.copy()  # it may be a view of what is unmapped next
        if isinstance(source, ir.ExternalTensor):
            source.release()
        return ir.tensor(made)

    return ir.LazyTensor(evaluate, dtype=dtype, shape=ir.Shape(shape))


def constant_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Like ``constant_array`` but without loading external data."""
    tensor = constant_tensor(value)
    return None if tensor is None else tuple(int(str(d)) for d in tensor.shape)
