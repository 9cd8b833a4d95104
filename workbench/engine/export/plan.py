"""Which node of the graph each record entry means, and whether the entry can be applied to it.

Source: chapter 10 sections 3.4, 6.2 and 12.4.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from workbench.engine.errors import WrongState, WrongValue
from workbench.engine.export.arithmetic import FloatArray
from workbench.engine.export.constants import constant_shape
from workbench.engine.export.rnn_rules import node_problems, record_problems
from workbench.engine.files.record import LayerRecord, Record
from workbench.engine.files.record_checks import check_record
from workbench.engine.graph.rnn import RNN_TYPES

KINDS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool")


@dataclass
class QuantizedNode:
    """One layer node of the graph with its checked record entry.

    ``weight`` is the initializer itself, also when an explicit ``Transpose`` stands between it and
    the node (``stored_transposed``). ``bias`` is the constant value, ``bias_add`` the ``Add`` that
    applies it (MatMul only).
    """

    name: str
    node: ir.Node
    record: LayerRecord
    weight: ir.Value | None = None
    stored_transposed: bool = False
    bias: ir.Value | None = None
    bias_add: ir.Node | None = None
    channels: int = 1
    scale_d: float = 1.0
    offset_d: int = 0
    scale_w: FloatArray = field(default_factory=lambda: np.ones(1, np.float32))

    @property
    def kind(self) -> str:
        return self.node.op_type

    @property
    def recurrent(self) -> bool:
        """An LSTM or GRU: ``export.rnn`` handles it, the passes for other layers leave it alone."""
        return self.kind in RNN_TYPES

    @property
    def groups(self) -> int:
        return self.node.attributes.get_int("group", 1)

    @property
    def act_bits(self) -> int:
        return self.record.act_bits

    @property
    def wts_bits(self) -> int:
        return self.record.wts_bits

    @property
    def force_fp16(self) -> bool:
        return self.record.fakequant_precision_mode == "FORCE_FP16_QUANT"

    @property
    def float16(self) -> bool:
        return self.node.attributes.get_string("op_data_type", "float") == "float16"

    @property
    def output_axis(self) -> int:
        """Stored weight axis of the output channels."""
        if self.kind == "Conv":
            return 0
        if self.kind == "Gemm":
            return 0 if self.node.attributes.get_int("transB", 0) else 1
        return 0 if self.stored_transposed else 1

    @property
    def input_axis(self) -> int:
        """Stored weight axis of the input channels."""
        return 1 - self.output_axis

    @property
    def in_channels(self) -> int:
        shape = weight_shape(self)
        return shape[self.input_axis] * (self.groups if self.kind == "Conv" else 1)


def weight_shape(layer: QuantizedNode) -> tuple[int, ...]:
    return constant_shape(layer.weight) or ()


def plan_layers(model: ir.Model, record: Record, *, source: str) -> list[QuantizedNode]:
    """Every recorded layer in execution order, checked against table 12.4 and the graph.

    All problems are reported together. Raises ``RuntimeError`` for an entry that fits no node or is
    incomplete, ``ValueError`` when only values are out of range.
    """
    check_record(record, source)
    nodes = {node.name: node for node in model.graph if node.name}
    structural: list[str] = []
    values: list[str] = []
    layers: dict[str, QuantizedNode] = {}
    for name, entry in record.layers.items():
        node = nodes.get(name)
        if node is None:
            structural.append(f"layer {name!r}: the ONNX graph has no node of that name")
            continue
        layer = QuantizedNode(name, node, entry)
        reason = _attach(layer)
        if reason:
            structural.append(f"layer {name!r} ({node.op_type}): {reason}")
            continue
        structural += [f"layer {name!r}: {text}" for text in _check_lengths(layer)]
        values += [f"layer {name!r}: {text}" for text in _check_balance(layer)]
        layer.scale_d = float(np.float32(entry.scale_d or 0.0))
        layer.offset_d = int(entry.offset_d or 0)
        layer.scale_w = np.asarray(entry.scale_w, np.float32)
        layers[name] = layer
    if not record.layers:
        structural.append("it holds no quantised layer")
    if structural or values:
        hint = "Run the calibration again, or correct the record file."
        text = "; ".join(structural + values)
        if structural:
            raise WrongState(text, where=source, hint=hint)
        raise WrongValue(text, where=source, hint=hint)
    return [layers[node.name] for node in model.graph if node.name in layers]


def _attach(layer: QuantizedNode) -> str:
    """Find weight, bias and channel count; a text says why the node cannot be quantised."""
    node = layer.node
    if node.op_type in RNN_TYPES:
        return "; ".join(node_problems(node))
    if node.op_type not in KINDS:
        return f"only {', '.join((*KINDS, *RNN_TYPES))} can be quantised"
    if node.op_type == "AveragePool":
        return ""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    producer = weight.producer() if weight is not None else None
    if producer is not None and producer.op_type == "Transpose":
        perm = producer.attributes.get_ints("perm", [1, 0])
        if node.op_type not in ("MatMul", "Gemm") or list(perm) != [1, 0]:
            return "its weight is not a constant"
        weight, layer.stored_transposed = producer.inputs[0], True
    shape = constant_shape(weight)
    if weight is None or shape is None:
        return "its weight is not a constant"
    layer.weight = weight
    if node.op_type in ("Conv", "ConvTranspose"):
        if not 3 <= len(shape) <= 5:
            return f"a kernel of rank {len(shape) - 2} is not supported (1 to 3 are)"
        layer.channels = shape[0] if node.op_type == "Conv" else shape[1] * layer.groups
    else:
        if len(shape) != 2:
            return f"its weight has rank {len(shape)} instead of 2"
        reason = _attach_gemm(layer) if node.op_type == "Gemm" else _attach_matmul(layer, shape)
        if reason:
            return reason
        layer.channels = shape[layer.output_axis]
    if node.op_type != "MatMul" and len(node.inputs) > 2 and node.inputs[2] is not None:
        layer.bias = node.inputs[2]
        bias = constant_shape(layer.bias)
        if bias is None or int(np.prod(bias)) != layer.channels:
            return f"its bias is not a constant of {layer.channels} values"
    return ""


def _attach_gemm(layer: QuantizedNode) -> str:
    attributes = layer.node.attributes
    if layer.stored_transposed:
        return "its weight comes from a Transpose node"
    if attributes.get_int("transA", 0):
        return "transA = 1 is not supported"
    if attributes.get_float("alpha", 1.0) != 1.0 or attributes.get_float("beta", 1.0) != 1.0:
        return "alpha and beta must be 1"
    return ""


def _attach_matmul(layer: QuantizedNode, shape: tuple[int, ...]) -> str:
    """D21: the bias is the constant vector of a single ``Add``, whichever operand it is."""
    output = layer.node.outputs[0]
    uses = list(output.uses())
    if len(uses) == 1 and not output.is_graph_output() and uses[0].node.op_type == "Add":
        add = uses[0].node
        other = add.inputs[1 - uses[0].idx]
        if constant_shape(other) == (shape[layer.output_axis],):
            layer.bias, layer.bias_add = other, add
    return ""


def _check_lengths(layer: QuantizedNode) -> list[str]:
    entry = layer.record
    if layer.recurrent:
        return record_problems(layer.node, entry)
    problems = []
    if len(entry.scale_w) not in (1, layer.channels):
        allowed = "1" if layer.channels == 1 else f"1 or {layer.channels}"
        problems.append(f"scale_w has {len(entry.scale_w)} values; allowed: {allowed}")
    if entry.tensor_balance_factor and layer.kind == "AveragePool":
        problems.append("tensor_balance_factor is not allowed on AveragePool")
    if layer.wts_bits == 4 and layer.kind != "AveragePool":
        packed = weight_shape(layer)[layer.input_axis]
        if packed % 2:
            problems.append(f"INT4 weights need an even number of input channels, not {packed}")
    return problems


def _check_balance(layer: QuantizedNode) -> list[str]:
    factors = layer.record.tensor_balance_factor
    if (
        not factors
        or layer.kind == "AveragePool"
        or layer.recurrent
        or len(factors) == layer.in_channels
    ):
        return []
    return [
        f"tensor_balance_factor has {len(factors)} values; "
        f"the layer has {layer.in_channels} input channels"
    ]
