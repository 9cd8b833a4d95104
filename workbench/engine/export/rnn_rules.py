"""Which LSTM and GRU nodes can be quantised, and with which record entries.

Source: chapter 10 sections 6.4 and 12.4.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from workbench.engine.export.constants import constant_shape
from workbench.engine.files.record import LayerRecord
from workbench.engine.graph.rnn import ONNX_GATES

QUANT_DTYPES: Mapping[int, int] = {8: 2, 16: 6}
"""Activation bits -> ``quant_dtype`` of the deploy node."""

W, R, B, H, C, P = 1, 2, 3, 5, 6, 7
"""Input numbers of the ONNX nodes: weights, bias, initial states, peepholes."""


def weight_rows(node: ir.Node) -> int:
    """Gates times hidden size: the most scales that each of the weights can have."""
    return (constant_shape(node.inputs[W]) or (1, 0, 0))[1]


def record_problems(node: ir.Node, entry: LayerRecord) -> list[str]:
    """What is wrong with the entry of a node that has no ``node_problems``."""
    problems, rows = [], weight_rows(node)
    if entry.scale_h is None or entry.offset_h is None:
        problems.append("scale_h or offset_h is missing; run all calibration batches")
    if len(entry.scale_w) not in (1, rows):
        problems.append(f"scale_w has {len(entry.scale_w)} values; allowed: 1 or {rows}")
    if len(entry.scale_r) != len(entry.scale_w):
        problems.append(
            f"scale_r has {len(entry.scale_r)} values; as many as scale_w ({len(entry.scale_w)}) "
            "are needed"
        )
    if len(entry.offset_r) != len(entry.scale_r):
        problems.append(f"offset_r has {len(entry.offset_r)} values, not {len(entry.scale_r)}")
    if entry.tensor_balance_factor:
        problems.append(f"tensor_balance_factor is not allowed on {node.op_type}")
    if entry.act_bits not in QUANT_DTYPES:
        problems.append(f"{entry.act_bits}-bit activations have no quant_dtype; 8 or 16 have")
    for index, part in ((W, "input"), (R, "hidden")):
        columns = (constant_shape(node.inputs[index]) or (1, 1, 0))[2]
        if entry.wts_bits == 4 and columns % 2:
            problems.append(f"INT4 weights need an even {part} size, not {columns}")
    return problems


def node_problems(node: ir.Node) -> list[str]:
    """What keeps a node from being quantised."""
    kind, inputs = node.op_type, [*node.inputs, *[None] * 8]
    text, number = node.attributes.get_string, node.attributes.get_int
    shapes = [constant_shape(inputs[index]) for index in (W, R)]
    hidden = number("hidden_size", 0)
    gates = len(ONNX_GATES[kind]) * hidden
    wanted = {
        "weights that are no constants": None in shapes,
        "a bias that is no constant": inputs[B] is not None
        and constant_shape(inputs[B]) != (1, 2 * gates),
        f"weights of the shapes {shapes[0]} and {shapes[1]} at hidden size {hidden}": any(
            shape is not None and shape[:2] != (1, gates) for shape in shapes
        ),
        "no initial state": inputs[H] is None or (kind == "LSTM" and inputs[C] is None),
        "an initial state that comes from no graph input": any(
            value is not None and not _derives_from_input(value)
            for value in (inputs[H], inputs[C] if kind == "LSTM" else None)
        ),
        "a peephole input": kind == "LSTM" and inputs[P] is not None,
        "other activations": any(
            name in node.attributes
            for name in ("activations", "activation_alpha", "activation_beta")
        ),
        "a clip": "clip" in node.attributes,
        f"direction {text('direction', 'forward')}": text("direction", "forward") != "forward",
        "layout 1": number("layout", 0) != 0,
        "input_forget 1": kind == "LSTM" and number("input_forget", 0) != 0,
        "linear_before_reset 0": kind == "GRU" and number("linear_before_reset", 0) == 0,
        f"{len(node.outputs)} outputs": len(node.outputs) != (3 if kind == "LSTM" else 2),
    }
    return [f"{kind} with {what} cannot be quantised" for what, wrong in wanted.items() if wrong]


def _derives_from_input(value: ir.Value) -> bool:
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        if current.is_graph_input():
            return True
        node = current.producer()
        for operand in node.inputs if node is not None else ():
            if operand is not None and operand not in seen:
                seen.add(operand)
                pending.append(operand)
    return False
