"""The QDQ file: standard QuantizeLinear/DequantizeLinear pairs that runtimes fuse to int8 kernels.

Source: index decisions 8 and 12, D22. The integers are those of the record; what ``qdq_plan``
decides is only where a tensor between two layers is rounded.
"""

from __future__ import annotations

import logging

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from workbench.engine.errors import WrongValue
from workbench.engine.export.constants import constant_array, constant_shape
from workbench.engine.export.edits import Names, insert_on_input, make_node, new_initializer
from workbench.engine.export.insert import insert_balance, remove_marks, store_gemm_untransposed
from workbench.engine.export.plan import QuantizedNode
from workbench.engine.export.qdq_balance import fold_balance
from workbench.engine.export.qdq_constants import (
    keeps_float_weight,
    quantize_bias,
    quantize_weight,
)
from workbench.engine.export.qdq_plan import KEEPS_VALUES, QdqPlan, ceil_pool, layer_grid
from workbench.engine.files.sidecar import Sidecar

log = logging.getLogger("workbench.export")

WEIGHT_TYPES = ("uint8", "int8")
"""How 8-bit weights are stored: option ``qdq_weights`` of the record's sidecar.

uint8 (zero point 128, the default) holds the same integers. With int8 weights the AVX2 kernels of
ONNX Runtime add two products in 16 bits and saturate: on CPUs without VNNI that made the error of
a small ResNet 3.5 times larger (0.00099 rms instead of 0.00028) for 1.5 times the speed. With VNNI
or on Arm both are exact, and int8 is what TensorRT asks for.
"""


def qdq_obstacle(model: ir.Model, layers: list[QuantizedNode]) -> str:
    """Why no QDQ file can be written for this graph; empty when it can."""
    opset = model.opset_imports.get("", 0)
    if opset < 13:
        return f"opset {opset} has no per-channel QuantizeLinear (13 or later is needed)"
    half = [layer.name for layer in layers if layer.float16]
    if half:
        return f"layer {half[0]} computes in float16"
    wide = [layer.name for layer in layers if layer.act_bits != 8 and not layer.recurrent]
    if wide and opset < 21 and any(n.op_type == "GroupNormalization" for n in model.graph):
        return (
            f"layer {wide[0]} has {layers[0].act_bits}-bit activations, which need opset 21, "
            "where GroupNormalization means something else"
        )
    return ""


def build_qdq(model: ir.Model, layers: list[QuantizedNode], sidecar: Sidecar) -> ir.Model:
    """Rewrite the float graph into QDQ form, in place.

    Raises ``ValueError`` for an unknown ``qdq_weights`` option and ``RuntimeError`` for a bias that
    does not fit in int32.
    """
    weights = sidecar.options.get("qdq_weights", "uint8")
    if weights not in WEIGHT_TYPES:
        raise WrongValue(
            f"qdq_weights is {weights!r}; allowed: {', '.join(WEIGHT_TYPES)}", where="sidecar"
        )
    # LSTM, GRU and some poolings compute in float here, see ``qdq_plan``.
    layers = [layer for layer in layers if not (layer.recurrent or ceil_pool(layer.node))]
    graph, names = model.graph, Names(model.graph)
    pool_spatial_means(graph, names)
    for layer in layers:
        store_gemm_untransposed(graph, names, layer)
        if layer.record.tensor_balance_factor:
            insert_balance(graph, names, layer)
    balanced = fold_balance(graph, layers)
    plan = QdqPlan(graph, layers, sidecar.ranges)
    scales = {}
    for layer in layers:
        data = layer.node.inputs[0]
        assert data is not None
        grid = plan.grid(data) if layer.act_bits == 8 else None
        scales[layer.name] = (grid or layer_grid(layer)).scale
    float_weights = {layer.node for layer in layers if keeps_float_weight(layer)}
    _quantize_values(graph, names, plan, _values(graph), float_weights)
    for layer in layers:
        if layer.act_bits != 8:
            _quantize_wide_input(graph, names, layer)
            _require_opset(model, 21)
        output_scale = balanced.get(layer.name)
        quantize_weight(graph, names, layer, output_scale, unsigned=weights == "uint8")
        quantize_bias(graph, names, layer, scales[layer.name], output_scale)
    RemoveUnusedNodesPass()(model)
    remove_marks(graph)
    return model


def pool_spatial_means(graph: ir.Graph, names: Names) -> None:
    """ReduceMean over both spatial axes of a rank-4 tensor is a GlobalAveragePool (int8 kernel)."""
    for node in list(graph):
        data = node.inputs[0] if node.inputs else None
        if node.op_type != "ReduceMean" or data is None or data.shape is None:
            continue
        axes = node.attributes.get_ints("axes", []) or (
            constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
        )
        if axes is None or len(data.shape) != 4 or {int(a) % 4 for a in axes} != {2, 3}:
            continue
        old = node.outputs[0]
        keep = node.attributes.get_int("keepdims", 1) == 1
        pool = make_node(
            "GlobalAveragePool",
            [data],
            names.node(f"{node.name}.pool"),
            names.value(f"{old.name}.pool"),
        )
        made = [pool]
        if not keep:
            axis = {"axis": ir.AttrInt64("axis", 1)}
            name = names.value(f"{old.name}.flat")
            made.append(
                make_node("Flatten", [pool.outputs[0]], names.node(f"{node.name}.flat"), name, axis)
            )
        graph.insert_before(node, made)
        fresh = made[-1].outputs[0]
        fresh.shape, fresh.type = old.shape, old.type
        _hand_over(graph, old, fresh)
        graph.remove(node, safe=True)


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]


def _hand_over(graph: ir.Graph, old: ir.Value, fresh: ir.Value) -> None:
    """``fresh`` feeds every reader of ``old`` and takes its place and name as a graph output."""
    for position, output in enumerate(graph.outputs):
        if output is old:
            old.name, fresh.name = f"{old.name}_output0", old.name
            fresh.shape, fresh.type = old.shape, old.type
            graph.outputs[position] = fresh
    old.replace_all_uses_with(fresh)


def _quantize_values(
    graph: ir.Graph,
    names: Names,
    plan: QdqPlan,
    values: list[ir.Value],
    float_weights: set[ir.Node],
) -> None:
    """Insert the pairs that ``plan`` asks for; then drop the activations it folds."""
    work = []
    for value in values:
        grid = plan.grid(value)
        if grid is None or not plan.quantized(value):
            continue
        if any(use.node in plan.folded for use in value.uses()):
            continue  # the activation behind it carries the pair
        everyone = plan.from_integers(value) and not plan.kept_float(value)
        readers = [
            use for use in value.uses() if everyone or plan.reads_integers(use.node, use.idx)
        ]
        work.append((value, grid, readers, everyone))
    for value, grid, readers, everyone in work:
        scale = np.asarray(grid.scale, np.float32)
        zero = np.asarray(grid.zero_point, np.uint8)
        pair = _pair(graph, names, value, str(value.name), scale, zero)
        _place(graph, value, pair)
        fresh = pair[-1].outputs[0]
        guarded: ir.Value | None = None
        for use in readers:
            channels = 0
            exact = plan.reads_integers(use.node, use.idx) and use.node not in float_weights
            if not exact and stays_float(use.node, use.idx):
                channels = _channels(value, use.node)
            if channels and guarded is None:
                guarded = _per_channel(graph, names, pair, scale, zero, channels)
            chosen = guarded if channels and guarded is not None else fresh
            use.node.replace_input_with(use.idx, chosen)
        if everyone and value.is_graph_output():
            _move_output_name(graph, names, value, fresh)
    for node in plan.folded:
        source = node.inputs[0]
        assert source is not None
        _hand_over(graph, node.outputs[0], source)
        graph.remove(node, safe=True)


def stays_float(node: ir.Node, index: int) -> bool:
    """Whether this reader is, or leads to, a layer whose float weight a runtime would quantise.

    ONNX Runtime rounds the constant float weight of every Conv, ConvTranspose and Gemm behind a
    per-tensor DequantizeLinear to int8 by itself, which would undo a roll-back. It leaves those
    behind a per-channel one alone.
    """
    if index != 0:
        return False
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        return True
    if node.op_type not in KEEPS_VALUES:
        return False
    return any(stays_float(use.node, use.idx) for use in node.outputs[0].uses())


def _channels(value: ir.Value, reader: ir.Node) -> int:
    """Length of axis 1 of ``value``; 0 when it is not known."""
    if value.shape is not None and len(value.shape) > 1 and isinstance(value.shape[1], int):
        return value.shape[1]
    weight = constant_shape(reader.inputs[1]) if len(reader.inputs) > 1 else None
    if weight is None:
        return 0
    if reader.op_type == "Conv":
        return weight[1] * reader.attributes.get_int("group", 1)
    if reader.op_type == "Gemm":
        return weight[reader.attributes.get_int("transB", 0)]
    return weight[0] if reader.op_type == "ConvTranspose" else 0


def _per_channel(
    graph: ir.Graph,
    names: Names,
    pair: list[ir.Node],
    scale: NDArray[np.float32],
    zero: NDArray[np.generic],
    channels: int,
) -> ir.Value:
    """A second DequantizeLinear with the same scale written once per channel."""
    quantize, dequantize = pair
    base = str(dequantize.outputs[0].name)
    step = new_initializer(graph, np.full(channels, scale), names.value(f"{base}_scales"))
    origin = new_initializer(graph, np.full(channels, zero), names.value(f"{base}_zero_points"))
    node = make_node(
        "DequantizeLinear",
        [quantize.outputs[0], step, origin],
        names.node(f"{dequantize.name}_float"),
        names.value(f"{base}_float"),
        {"axis": ir.AttrInt64("axis", 1)},
        like=dequantize.outputs[0],
    )
    graph.insert_after(dequantize, [node])
    return node.outputs[0]


def _pair(
    graph: ir.Graph,
    names: Names,
    value: ir.Value,
    base: str,
    scale: NDArray[np.generic],
    zero_point: NDArray[np.generic],
) -> list[ir.Node]:
    step = new_initializer(graph, scale, names.value(f"{base}_scale"))
    zero = new_initializer(graph, zero_point, names.value(f"{base}_zero_point"))
    quantize = make_node(
        "QuantizeLinear",
        [value, step, zero],
        names.node(f"{base}_QuantizeLinear"),
        names.value(f"{base}_quantized"),
        like=value,
        dtype=zero.dtype,
    )
    dequantize = make_node(
        "DequantizeLinear",
        [quantize.outputs[0], step, zero],
        names.node(f"{base}_DequantizeLinear"),
        names.value(f"{base}_dequantized"),
        like=value,
    )
    return [quantize, dequantize]


def _place(graph: ir.Graph, value: ir.Value, nodes: list[ir.Node]) -> None:
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)


def _move_output_name(graph: ir.Graph, names: Names, old: ir.Value, fresh: ir.Value) -> None:
    for position, output in enumerate(graph.outputs):
        if output is old:
            name = old.name
            old.name = names.value(f"{name}_float")
            fresh.name = name
            fresh.shape, fresh.type = old.shape, old.type
            graph.outputs[position] = fresh


def _quantize_wide_input(graph: ir.Graph, names: Names, layer: QuantizedNode) -> None:
    """4- or 16-bit activations: a pair of their own; the layer computes in float behind it."""
    data = layer.node.inputs[0]
    assert data is not None
    dtype = np.int16 if layer.act_bits == 16 else ml_dtypes.int4
    pair = _pair(
        graph,
        names,
        data,
        f"{layer.name}.input",
        np.asarray(layer.scale_d, np.float32),
        np.asarray(layer.offset_d).astype(dtype),
    )
    insert_on_input(graph, layer.node, 0, pair)


def _require_opset(model: ir.Model, version: int) -> None:
    model.opset_imports[""] = max(model.opset_imports.get("", 0), version)
    model.ir_version = max(model.ir_version or 0, 10)
