"""Shapes and multiply-accumulates of one node of an exported program."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.fx import Node

from workbench.engine.graph.rnn import RNN_TYPES


def shape_of(node: Node | None) -> tuple[int, ...]:
    """A node's tensor shape, 0 for a dynamic dimension; () when it has no tensor.

    Of an operator with several results (LSTM, GRU) it is the first one's.
    """
    value = _tensor(node)
    if value is None:
        return ()
    return tuple(0 if isinstance(size, torch.SymInt) else int(size) for size in value.shape)


def example_shape(node: Node | None) -> tuple[int, ...]:
    """A node's tensor shape for the example the program was exported from."""
    value = _tensor(node)
    if value is None:
        return ()
    return tuple(_hint(size) for size in value.shape)


def multiply_accumulates(
    kind: str, given: tuple[int, ...], made: tuple[int, ...], weight: tuple[int, ...], batch: int
) -> int:
    """Multiply-accumulates of one layer for one sample.

    ``given`` and ``made`` are the example shapes of input and output, ``weight`` the weight's, and
    ``batch`` the number of samples in the example. A convolution's weight is (Cout, Cin/groups,
    k…), a transposed one's (Cin, Cout/groups, k…), a linear layer's (out, in), an LSTM's or GRU's
    (gates*H, inputs + H) at every step. Pooling multiplies nothing.
    """
    if not weight or not made or not given:
        return 0
    if kind.startswith("ConvTranspose"):
        total = prod(given) * prod(weight[1:])
    elif kind.startswith("Conv") or kind == "Linear":
        total = prod(made) * prod(weight[1:])
    elif kind in RNN_TYPES:
        total = prod(given[:-1]) * prod(weight)
    else:
        return 0
    return total // max(batch, 1)


def _tensor(node: Node | None) -> Tensor | None:
    value = node.meta.get("val") if node is not None else None
    if isinstance(value, list | tuple) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None


def _hint(size: int | torch.SymInt) -> int:
    if isinstance(size, torch.SymInt):
        hint = size.node.hint
        return int(hint) if hint is not None else 0
    return int(size)
