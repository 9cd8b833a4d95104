"""The fake-quant file: the common graph with every custom node written in standard operators.

Source: chapter 10 section 13.4. Weights and biases are float32 tensors of integer codes, so a plain
float runtime computes the exact integer accumulators while they stay below 2**24.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from workbench.engine.export.arithmetic import unpack_dequant_parameter
from workbench.engine.export.constants import (
    constant_array,
    constant_shape,
    constant_tensor,
    derived,
)
from workbench.engine.export.edits import Names, constant_node, make_node, set_constant
from workbench.engine.export.insert import remove_marks
from workbench.engine.numerics.integer import int_range

FLOAT = ir.DataType.FLOAT


def expand_fake_quant(model: ir.Model) -> None:
    """Expand quant, weights, biases and dequant nodes, in place, on a copy of the common graph."""
    graph, names = model.graph, Names(model.graph)
    for node in list(graph):
        if node.op_type == "AscendQuant":
            expand_quant(graph, names, node)
        elif node.op_type == "AscendDequant":
            float_constants(graph, names, node)
            expand_dequant(graph, names, node)
    remove_marks(graph)


def expand_quant(graph: ir.Graph, names: Names, quant: ir.Node) -> None:
    """``x * (1/scale_d)``, round half to even, ``+ offset``, clip, ``- offset``."""
    data = quant.inputs[0]
    assert data is not None
    base = f"{quant.name}.fakequant"
    bits = int(quant.attributes.get_string("dst_type", "INT8")[3:])
    low, high = int_range(bits)
    constants = {}
    nodes = []
    for key, number in (
        ("scale", quant.attributes.get_float("scale", 1.0)),
        ("offset", quant.attributes.get_float("offset", 0.0)),
        ("min_val", float(low)),
        ("max_val", float(high)),
    ):
        name = f"{base}.{key}"
        made = constant_node(
            np.asarray(number, np.float32), names.node(name), names.value(f"{name}.output0")
        )
        constants[key] = made.outputs[0]
        nodes.append(made)
    current = data
    steps: list[tuple[str, str, list[ir.Value]]] = [
        ("mul", "Mul", [constants["scale"]]),
        ("round", "Round", []),
        ("add", "Add", [constants["offset"]]),
        ("clip", "Clip", [constants["min_val"], constants["max_val"]]),
        ("sub", "Sub", [constants["offset"]]),
    ]
    if quant.meta["float16"]:
        steps.insert(0, ("cast", "Cast", []))
        if quant.meta["balanced"]:
            # ONNX Runtime multiplies halves in float32 and leaves out the rounding to half before
            # a Cast back. A move of data in between, which it has in half, keeps it.
            steps.insert(0, ("half", "Concat", []))
    own: dict[str, dict[str, ir.Attr]] = {
        "Cast": {"to": ir.AttrInt64("to", int(FLOAT))},
        "Concat": {"axis": ir.AttrInt64("axis", 0)},
    }
    for key, op_type, extra in steps:
        name = names.node(f"{base}.{key}")
        output = names.value(f"{name}.output0")
        dtype = data.dtype if op_type == "Concat" else FLOAT
        made = make_node(
            op_type, [current, *extra], name, output, own.get(op_type, {}), data, dtype
        )
        current = made.outputs[0]
        nodes.append(made)
    graph.insert_before(quant, nodes)
    quant.outputs[0].replace_all_uses_with(current)
    graph.remove(quant, safe=True)


def float_constants(graph: ir.Graph, names: Names, dequant: ir.Node) -> None:
    """Codes of the weight and the bias that lead to ``dequant`` become float32."""
    pending = [dequant.inputs[0]]
    while pending:
        value = pending.pop()
        node = value.producer() if value is not None else None
        if node is None:
            continue
        for index, operand in enumerate(node.inputs):
            codes = constant_tensor(operand)
            if codes is not None and codes.dtype in (ir.DataType.INT8, ir.DataType.INT32):
                shape = constant_shape(operand) or ()
                floats = derived(codes, lambda c: c.astype(np.float32), shape, FLOAT)
                set_constant(graph, names, node, index, floats)
        if node.op_type == "Add":
            pending += [v for v in node.inputs if constant_tensor(v) is None]
        elif node.op_type in ("MatMul", "Gemm"):
            transpose = node.inputs[1].producer() if node.inputs[1] is not None else None
            if transpose is not None and transpose.op_type == "Transpose":
                pending.append(node.inputs[1])


def expand_dequant(graph: ir.Graph, names: Names, dequant: ir.Node) -> None:
    """``accumulator * (scale_d * scale_w)``, shaped to the channel axis of the layer's output."""
    accumulator, parameter = dequant.inputs
    words = constant_array(parameter)
    assert words is not None
    assert accumulator is not None
    assert parameter is not None
    layer = str(dequant.meta["layer"])
    base = f"{layer}.fakedequant"
    scale = unpack_dequant_parameter(words.astype(np.uint64))
    shape = (1, -1) + (1,) * (int(dequant.meta["scale_rank"]) - 2)
    name = f"{base}.dqscale"
    constant = constant_node(scale.reshape(shape), names.node(name), names.value(f"{name}.output0"))
    old = dequant.outputs[0]
    to_half = dequant.attributes.get_int("dtype", 0) == 1
    name = names.node(f"{base}.mul")
    output = names.value(f"{name}.output0")
    product = make_node(
        "Mul", [accumulator, constant.outputs[0]], name, output, like=old, dtype=FLOAT
    )
    nodes = [constant, product]
    if to_half:
        name = names.node(f"{base}.cast")
        output = names.value(f"{name}.output0")
        attributes = {"to": ir.AttrInt64("to", int(ir.DataType.FLOAT16))}
        nodes.append(make_node("Cast", [product.outputs[0]], name, output, attributes, old))
    graph.insert_before(dequant, nodes)
    fresh = nodes[-1].outputs[0]
    for position, value in enumerate(graph.outputs):
        if value is old:
            fresh.name, old.name = old.name, None
            graph.outputs[position] = fresh
    old.replace_all_uses_with(fresh)
    graph.remove(dequant, safe=True)
    if not parameter.uses() and parameter.name is not None:
        graph.initializers.pop(parameter.name)
