"""ONNX forms of LSTM and GRU: one node a level, with the whole weights as constants.

The exporter's own way unrolls the sequence. Gates are brought into ONNX's order, the sequence to
(length, batch, features) with a Transpose where the layer is ``batch_first``. Source: chapter 10
section 6.4; torch computes a GRU with ``linear_before_reset`` 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18
from torch import Tensor

from workbench.engine.errors import WrongValue
from workbench.engine.graph.rnn import RNN_TYPES, gate_rows, to_onnx_order

if TYPE_CHECKING:
    # onnxscript's tensor types describe values of its own interpreter, not what a trace passes.
    FLOAT: TypeAlias = Any
else:
    from onnxscript import FLOAT

op: Any = opset18
_aten = torch.ops.aten


def lstm(
    input: FLOAT,
    hx: Sequence[FLOAT],
    params: Sequence[FLOAT],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[FLOAT, FLOAT, FLOAT]:
    """Output (sequence), last hidden state and last cell state, as torch lays them out."""
    del dropout, train
    sequence, (hidden, cell) = _levels(
        "LSTM", input, list(hx), params, has_biases, num_layers, bidirectional, batch_first
    )
    return sequence, hidden, cell


def gru(
    input: FLOAT,
    hx: FLOAT,
    params: Sequence[FLOAT],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[FLOAT, FLOAT]:
    """Output (sequence) and last hidden state, as torch lays them out."""
    del dropout, train
    sequence, (hidden,) = _levels(
        "GRU", input, [hx], params, has_biases, num_layers, bidirectional, batch_first
    )
    return sequence, hidden


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    _aten.lstm.input: lstm,
    _aten.gru.input: gru,
}


def fold_recurrent_weights(model: ir.Model, names: Mapping[ir.Node, str]) -> None:
    """Compute the W, R and B of every LSTM and GRU now: each becomes an initialiser.

    ``names``: the nodes that are layers; their initialisers are ``<layer>.W``, ``.R`` and ``.B``.
    """
    for node in list(model.graph):
        if node.op_type not in RNN_TYPES or node.domain:
            continue
        stem = names.get(node, node.outputs[0].name)
        for index, part in enumerate("WRB", start=1):
            value = node.inputs[index] if index < len(node.inputs) else None
            array = None if value is None or value.is_initializer() else _computed(value)
            if array is not None:
                _store(model, node, index, array, f"{stem}.{part}")


def replace_recurrent_weight(model: ir.Model, node: ir.Node, name: str, joined: Tensor) -> None:
    """Let the layer ``name`` hold the weights of ``joined`` (``graph.rnn.joined_weight``)."""
    old = [node.inputs[1], node.inputs[2]]
    rows, columns = (tuple(value.shape or ()) if value is not None else () for value in old)
    wanted = (rows[1], rows[2] + columns[2])
    if tuple(joined.shape) != wanted:
        raise WrongValue(
            f"has shape {tuple(joined.shape)}; the layer's weights have {wanted} side by side.",
            where=f"weights[{name!r}]",
        )
    ordered = to_onnx_order(node.op_type, joined.detach().cpu()).numpy()
    split = int(str(rows[2]))
    for index, array in enumerate((ordered[:, :split], ordered[:, split:]), start=1):
        _store(model, node, index, np.ascontiguousarray(array[None]), f"{name}.{'WR'[index - 1]}")


def complete_outputs(model: ir.Model) -> None:
    """Give LSTM and GRU nodes the outputs back that cleaning drops because nothing reads them.

    A quantised node must have all of them (chapter 10 section 6.4).
    """
    for node in model.graph:
        if node.op_type not in RNN_TYPES or node.domain:
            continue
        node.resize_outputs(3 if node.op_type == "LSTM" else 2)
        for value, part in zip(node.outputs, ("Y", "Y_h", "Y_c"), strict=False):
            value.name = value.name or f"{node.name}.{part}"


def _store(
    model: ir.Model, node: ir.Node, index: int, array: np.ndarray[Any, Any], name: str
) -> None:
    graph, old = model.graph, node.inputs[index]
    if old is not None and old.name == name and len(old.uses()) == 1:
        del graph.initializers[name]
    tensor = ir.tensor(array, name=name)
    made = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(made)
    node.replace_input_with(index, made)


def _levels(
    kind: str,
    input: FLOAT,
    state: list[FLOAT],
    params: Sequence[FLOAT],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[FLOAT, list[FLOAT]]:
    directions = 2 if bidirectional else 1
    per_direction = len(params) // (num_layers * directions)
    operator, extra = (op.LSTM, {}) if kind == "LSTM" else (op.GRU, {"linear_before_reset": 1})
    value = op.Transpose(input, perm=[1, 0, 2]) if batch_first else input
    finals: list[list[FLOAT]] = []
    for level in range(num_layers):
        first = level * directions
        own = [
            list(params[d * per_direction : (d + 1) * per_direction])
            for d in range(first, first + directions)
        ]
        hidden = int(own[0][1].shape[1])
        rows = op.Constant(value_ints=gate_rows(kind, hidden))
        weights = [_joined([_ordered(group[i], rows) for group in own]) for i in (0, 1)]
        bias = None
        if has_biases:
            both = [
                op.Concat(_ordered(group[2], rows), _ordered(group[3], rows), axis=0)
                for group in own
            ]
            bias = _joined(both)
        start = state
        if num_layers > 1:
            ends = [op.Constant(value_ints=[n]) for n in (first, first + directions, 0)]
            start = [op.Slice(part, *ends) for part in state]
        made = operator(
            value,
            *weights,
            bias,
            None,
            *start,
            hidden_size=hidden,
            direction="bidirectional" if bidirectional else "forward",
            **extra,
        )
        outputs, *last = made
        finals.append(last)
        if bidirectional:
            # (length, directions, batch, hidden) -> (length, batch, directions * hidden)
            swapped = op.Transpose(outputs, perm=[0, 2, 1, 3])
            value = op.Reshape(swapped, op.Constant(value_ints=[0, 0, -1]))
        else:
            value = op.Squeeze(outputs, op.Constant(value_ints=[1]))
    if batch_first:
        value = op.Transpose(value, perm=[1, 0, 2])
    if num_layers == 1:
        return value, finals[0]
    return value, [op.Concat(*parts, axis=0) for parts in zip(*finals, strict=True)]


def _ordered(parameter: FLOAT, rows: FLOAT) -> FLOAT:
    return op.Gather(parameter, rows, axis=0)


def _joined(directions: list[FLOAT]) -> FLOAT:
    """One array with the directions on a new axis 0."""
    parts = [op.Unsqueeze(part, op.Constant(value_ints=[0])) for part in directions]
    return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=0)


def _computed(value: ir.Value) -> np.ndarray[Any, Any] | None:
    """The value of what ``_ordered`` and ``_joined`` built; None for anything else."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return np.asarray(tensor.numpy())
    node = value.producer()
    if node is None:
        return None
    operands = [None if v is None else _computed(v) for v in node.inputs]
    known = [operand for operand in operands if operand is not None]
    if len(known) != len(operands):
        return None
    if node.op_type == "Gather":
        return np.asarray(np.take(known[0], known[1], axis=node.attributes.get_int("axis", 0)))
    if node.op_type == "Unsqueeze":
        return np.expand_dims(known[0], tuple(int(axis) for axis in known[1]))
    if node.op_type == "Concat":
        return np.concatenate(known, axis=node.attributes.get_int("axis", 0))
    return None
