"""The deploy file's LSTM and GRU nodes, computed from their integers.

What is modelled: X and the initial hidden state as codes, the products of codes with W and of the
first step with R as exact integers with their int32 bias, one multiplication by the parameter's
words, gates in float64. What the format leaves open follows the fake-quant file: the hidden state
of later steps is a float, not rounded to the grid of ``scale_h``, and the cell state is a float.
Source: chapter 10 sections 13.3 and 13.4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from workbench.engine.export.arithmetic import (
    INT32_MAX,
    INT32_MIN,
    unpack_dequant_parameter,
    unpack_int4,
)
from workbench.engine.export.integer_ops import attributes_of
from workbench.engine.numerics.integer import int_range

Wide = NDArray[np.float64]
Array = NDArray[Any]

KINDS: Mapping[str, str] = {
    "BasicLSTMInplaceFillWindowCache": "LSTM",
    "BasicGRUInplaceFillWindowCache": "GRU",
}
"""Operator of the deploy file -> ONNX's."""

_BITS = {2: 8, 6: 16}


def dequant_values(words: NDArray[np.uint64], rows: int) -> tuple[Wide, Wide]:
    """The parameter's values for the input half and the hidden half, ``rows`` each."""
    values = unpack_dequant_parameter(words.astype(np.uint64)).astype(np.float64)
    first, second = values.reshape(2, -1)
    return np.broadcast_to(first, (rows,)), np.broadcast_to(second, (rows,))


def run_recurrent(node: onnx.NodeProto, operands: list[Array | None]) -> tuple[list[Array], int]:
    """All outputs of a node, in float32, and the number of accumulators beyond int32.

    ``operands`` as in the file: X ``(L, N, I)``, W, R, initial_h, initial_c (LSTM), B,
    sequence_lens, nothing, the parameter.
    """
    kind = KINDS[node.op_type]
    settings = attributes_of(node)
    x, w, r, h = (np.asarray(operand) for operand in operands[:4])
    c = np.asarray(operands[4]) if kind == "LSTM" else None
    bias = operands[5 if kind == "LSTM" else 4]
    words = operands[-1]
    assert words is not None
    w, r = _unpacked(w, x.shape[-1])[0], _unpacked(r, settings["hidden_size"])[0]
    rows = w.shape[0]
    deq_x, deq_h = dequant_values(words, rows)
    given = np.zeros((1, 2 * rows)) if bias is None else bias.astype(np.float64)
    bias_x, bias_h = given[0, :rows], given[0, rows:]

    codes = _codes(x, settings, "x")
    left = codes @ w.T.astype(np.float64) + bias_x
    state = _codes(h[0], settings, "h")
    first = state @ r.T.astype(np.float64) + bias_h
    overflows = sum(int(((a > INT32_MAX) | (a < INT32_MIN)).sum()) for a in (left, first))
    inputs = left * deq_x
    # What a float state is multiplied with; the first state has a code and needs no such product.
    scale_h = float(np.float32(1.0 / np.float32(settings["quant_scale_h"])))
    recurrent, offset = r.astype(np.float64) * (deq_h / scale_h)[:, None], bias_h * deq_h

    step: Callable[..., tuple[Wide, Wide]] = _lstm if kind == "LSTM" else _gru
    hidden, cell = state * scale_h, np.zeros_like(h[0]) if c is None else c[0]
    cell = cell.astype(np.float64)
    outputs = []
    for index in range(len(inputs)):
        from_state = first * deq_h if index == 0 else hidden @ recurrent.T + offset
        hidden, cell = step(inputs[index], from_state, hidden, cell)
        outputs.append(hidden)
    results = [np.stack(outputs)[:, None], hidden[None], cell[None]]
    count = len(node.output)
    return [result.astype(np.float32) for result in results[:count]], overflows


def _lstm(x: Wide, h: Wide, hidden: Wide, cell: Wide) -> tuple[Wide, Wide]:
    i, o, f, g = np.split(x + h, 4, axis=-1)
    cell = _sigmoid(f) * cell + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(cell), cell


def _gru(x: Wide, h: Wide, hidden: Wide, cell: Wide) -> tuple[Wide, Wide]:
    (zx, rx, nx), (zh, rh, nh) = np.split(x, 3, axis=-1), np.split(h, 3, axis=-1)
    z, r = _sigmoid(zx + zh), _sigmoid(rx + rh)
    return (1.0 - z) * np.tanh(nx + r * nh) + z * hidden, cell


def _codes(x: Array, settings: Mapping[str, Any], half: str) -> Wide:
    """Codes minus the offset, which are integers."""
    offset = settings[f"quant_offset_{half}"]
    low, high = int_range(_BITS[settings["quant_dtype"]])
    codes = np.rint(x.astype(np.float32) * np.float32(settings[f"quant_scale_{half}"]))
    return np.asarray(np.clip(codes, low - offset, high - offset), np.float64)


def _unpacked(weight: Array, columns: int) -> Array:
    """A weight with half the expected columns holds two INT4 codes a byte."""
    return weight if weight.shape[2] == columns else unpack_int4(weight.astype(np.int8), 2)


def _sigmoid(x: Wide) -> Wide:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))
