"""The part that the deploy file and the fake-quant file have in common.

Source: chapter 10 section 13.2, steps 1 to 5, 7 and 8; names and attributes of section 13.3.
Each step is one function that edits the graph in place.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from workbench.engine.export.arithmetic import (
    bias_codes,
    dequant_scale,
    pack_dequant_parameter,
    weight_codes,
)
from workbench.engine.export.constants import constant_array, constant_tensor, derived
from workbench.engine.export.edits import (
    Names,
    constant_node,
    forget_type,
    insert_after_output,
    insert_on_input,
    make_node,
    new_initializer,
    set_constant,
)
from workbench.engine.export.plan import QuantizedNode, weight_shape
from workbench.engine.numerics.integer import reciprocal


def insert_quantization(
    model: ir.Model, layers: list[QuantizedNode], *, bias_before_dequant: bool = False
) -> None:
    """Turn the float graph into the one with AscendQuant and AscendDequant nodes.

    INT4 weights are still one code per INT8 element here. Raises ``RuntimeError`` when a bias does
    not fit in int32.
    """
    graph, names = model.graph, Names(model.graph)
    for layer in layers:
        if layer.recurrent:
            continue
        store_gemm_untransposed(graph, names, layer)
        if layer.record.tensor_balance_factor:
            insert_balance(graph, names, layer)
        insert_quant(graph, names, layer)
        anchor = layer.node
        if bias_before_dequant and layer.bias_add is not None:
            anchor = layer.bias_add
        quantize_weight(graph, names, layer)
        quantize_bias(graph, names, layer, bias_before_dequant=bias_before_dequant)
        insert_dequant(graph, names, layer, anchor)
    merge_duplicate_quants(graph)


def store_gemm_untransposed(graph: ir.Graph, names: Names, layer: QuantizedNode) -> None:
    """Gemm with ``transB = 1``: the weight is stored ``(Cin, Cout)`` and ``transB`` becomes 0."""
    if layer.kind != "Gemm" or not layer.node.attributes.get_int("transB", 0):
        return
    weight = constant_tensor(layer.node.inputs[1])
    assert weight is not None
    rows, columns = weight_shape(layer)
    turned = derived(weight, lambda w: np.ascontiguousarray(w.T), (columns, rows), weight.dtype)
    layer.weight = set_constant(graph, names, layer.node, 1, turned)
    layer.node.attributes["transB"] = ir.AttrInt64("transB", 0)


def insert_balance(graph: ir.Graph, names: Names, layer: QuantizedNode) -> None:
    """DMQ: the layer's input is multiplied by ``1 / tensor_balance_factor`` (section 10)."""
    data = layer.node.inputs[0]
    assert data is not None
    inverse = (1.0 / np.asarray(layer.record.tensor_balance_factor, np.float32)).astype(np.float32)
    rank = len(weight_shape(layer))
    shape = (1, -1) + (1,) * (rank - 2)
    dtype = np.float16 if layer.float16 else np.float32
    name = f"{layer.name}.tensor_balance_factor"
    factor = constant_node(
        inverse.reshape(shape).astype(dtype), names.node(name), names.value(f"{name}.output0")
    )
    product = make_node(
        "Mul",
        [data, factor.outputs[0]],
        names.node(f"{layer.name}.mul"),
        names.value(f"{layer.name}.mul.output0"),
        like=data,
    )
    insert_on_input(graph, layer.node, 0, [factor, product])


def insert_quant(graph: ir.Graph, names: Names, layer: QuantizedNode) -> None:
    """``AscendQuant`` on input 0; before a ``<layer>_pad`` that only an AveragePool reads."""
    node = layer.node
    data = node.inputs[0]
    assert data is not None
    pad = data.producer()
    if (
        layer.kind == "AveragePool"
        and pad is not None
        and pad.op_type == "Pad"
        and pad.name == f"{layer.name}_pad"
        and len(data.uses()) == 1
        and not data.is_graph_output()
    ):
        forget_type(data)
        node, data = pad, pad.inputs[0]
        assert data is not None
    quant = quant_node(names, layer.name, data, layer.scale_d, layer.offset_d, layer.act_bits)
    quant.meta["float16"] = layer.float16
    quant.meta["balanced"] = bool(layer.record.tensor_balance_factor)
    insert_on_input(graph, node, 0, [quant])


def quant_node(
    names: Names, name: str, data: ir.Value, scale_d: float, offset_d: int, bits: int
) -> ir.Node:
    """An ``AscendQuant`` called ``<name>.quant``."""
    quant = make_node(
        "AscendQuant",
        [data],
        names.node(f"{name}.quant"),
        names.value(f"{name}.quant.output0"),
        {
            "scale": ir.AttrFloat32("scale", reciprocal(scale_d)),
            "offset": ir.AttrFloat32("offset", float(offset_d)),
            "dst_type": ir.AttrString("dst_type", f"INT{bits}"),
        },
        like=data,
        dtype=ir.DataType.INT16 if bits == 16 else ir.DataType.INT8,
    )
    quant.meta.update({"scale_d": scale_d, "float16": False, "balanced": False})
    return quant


def quantize_weight(graph: ir.Graph, names: Names, layer: QuantizedNode) -> None:
    """The weight initializer holds INT8 codes, in the stored layout if a ``Transpose`` follows."""
    if layer.weight is None:
        return
    node, index = layer.node, 1
    if layer.stored_transposed:
        transposed = layer.node.inputs[1]
        producer = transposed.producer() if transposed is not None else None
        assert transposed is not None
        assert producer is not None
        node, index = producer, 0
        forget_type(transposed)
    stored = constant_tensor(node.inputs[index])
    assert stored is not None
    axis = layer.output_axis

    def codes(weight: NDArray[np.generic]) -> NDArray[np.generic]:
        made = weight_codes(weight, layer.scale_w, layer.wts_bits, axis=axis, groups=layer.groups)
        return made.astype(np.int8)

    content = derived(stored, codes, weight_shape(layer), ir.DataType.INT8)
    layer.weight = set_constant(graph, names, node, index, content)


def quantize_bias(
    graph: ir.Graph, names: Names, layer: QuantizedNode, *, bias_before_dequant: bool
) -> None:
    """The bias initializer holds INT32 codes; a MatMul's ``Add`` stays float unless asked (D21)."""
    if layer.bias is None or (layer.bias_add is not None and not bias_before_dequant):
        return
    node = layer.bias_add or layer.node
    index = list(node.inputs).index(layer.bias)
    stored = constant_array(layer.bias)
    assert stored is not None
    codes = bias_codes(stored, layer.scale_d, layer.scale_w, layer=layer.name)
    layer.bias = set_constant(graph, names, node, index, codes.reshape(stored.shape))


def insert_dequant(graph: ir.Graph, names: Names, layer: QuantizedNode, anchor: ir.Node) -> None:
    """``AscendDequant`` on the accumulator: output 0 of ``anchor`` (the layer or its bias Add)."""
    deq = dequant_scale(layer.scale_d, layer.scale_w, force_fp16=layer.force_fp16)
    parameter = new_initializer(
        graph, pack_dequant_parameter(deq), names.value(f"{layer.name}.dequant.param")
    )
    accumulator = anchor.outputs[0]
    dequant = make_node(
        "AscendDequant",
        [accumulator, parameter],
        names.node(f"{layer.name}.dequant"),
        names.value(f"{layer.name}.dequant.output0"),
        {"dtype": ir.AttrInt64("dtype", 1 if layer.float16 else 0)},
        like=accumulator,
    )
    half = layer.float16
    dequant.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16 if half else ir.DataType.FLOAT)
    dequant.meta["layer"] = layer.name
    dequant.meta["scale_rank"] = _scale_rank(layer)
    insert_after_output(graph, anchor, dequant, names)
    forget_type(accumulator)
    if anchor is not layer.node:
        forget_type(layer.node.outputs[0])


def _scale_rank(layer: QuantizedNode) -> int:
    return len(weight_shape(layer)) if layer.kind in ("Conv", "ConvTranspose") else 2


def merge_duplicate_quants(graph: ir.Graph) -> None:
    """Of AscendQuant nodes on one tensor with equal factors the first serves all readers.

    Equal means: bit-identical float32 ``scale_d``, equal offset and equal type.
    """
    first: dict[tuple[object, ...], ir.Node] = {}
    for node in list(graph):
        if node.op_type != "AscendQuant" or node.domain:
            continue
        key = (
            id(node.inputs[0]),
            np.float32(node.meta["scale_d"]).tobytes(),
            node.attributes.get_float("offset"),
            node.attributes.get_string("dst_type"),
        )
        kept = first.setdefault(key, node)
        if kept is not node:
            node.outputs[0].replace_all_uses_with(kept.outputs[0])
            graph.remove(node, safe=True)


def remove_marks(graph: ir.Graph) -> None:
    """The ``op_data_type`` attributes served this export only."""
    for node in graph.all_nodes():
        node.attributes.pop("op_data_type", None)
