"""What only the deploy file needs: packed INT4 weights and the float view of 4-bit layers' biases.

Source: chapter 10 section 13.3.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from workbench.engine.export.arithmetic import pack_int4
from workbench.engine.export.constants import constant_tensor, derived
from workbench.engine.export.edits import Names, insert_on_input, make_node, set_constant
from workbench.engine.export.insert import remove_marks
from workbench.engine.export.plan import QuantizedNode, weight_shape
from workbench.engine.export.rnn import deploy_recurrent


def finish_deploy(model: ir.Model, layers: list[QuantizedNode]) -> None:
    """Turn the common graph into the deploy graph, in place."""
    deploy_recurrent(model.graph, layers)
    names = Names(model.graph)
    for layer in layers:
        if layer.recurrent:
            continue
        if layer.wts_bits == 4:
            pack_weight(model.graph, names, layer)
        if layer.act_bits == 4:
            cast_bias(model.graph, names, layer)
    remove_marks(model.graph)


def pack_weight(graph: ir.Graph, names: Names, layer: QuantizedNode) -> None:
    """INT4: two codes a byte along the input-channel axis of the stored weight."""
    if layer.weight is None:
        return
    node, index = next(iter(layer.weight.uses()))
    codes = constant_tensor(layer.weight)
    assert codes is not None
    axis, shape = layer.input_axis, list(weight_shape(layer))
    shape[axis] //= 2
    packed = derived(codes, lambda c: pack_int4(c.astype(np.int8), axis), shape, codes.dtype)
    layer.weight = set_constant(graph, names, node, index, packed)


def cast_bias(graph: ir.Graph, names: Names, layer: QuantizedNode) -> None:
    """4-bit activations: ``Cast`` (to FLOAT) between the INT32 bias and the node that adds it."""
    if layer.bias is None or layer.bias.dtype != ir.DataType.INT32:
        return
    node, index = next(iter(layer.bias.uses()))
    cast = make_node(
        "Cast",
        [layer.bias],
        names.node(f"{layer.name}.bias_quant"),
        names.value(f"{layer.name}.bias_quant.output0"),
        {"to": ir.AttrInt64("to", int(ir.DataType.FLOAT))},
        like=layer.bias,
        dtype=ir.DataType.FLOAT,
    )
    insert_on_input(graph, node, index, [cast])
