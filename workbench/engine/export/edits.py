"""Small moves on an ``onnx_ir`` graph that the export passes share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

Content = NDArray[np.generic] | ir.TensorProtocol
"""What an initializer gets to hold; large ones come as ``constants.derived``."""

TYPED_FIELDS = {ir.DataType.INT32: "int32_data", ir.DataType.UINT64: "uint64_data"}


class Names:
    """Hands out node and value names of a graph; a taken name gets a decimal counter."""

    def __init__(self, graph: ir.Graph) -> None:
        self._nodes = {node.name for node in graph.all_nodes() if node.name}
        self._values = set(graph.initializers) | {v.name for v in graph.inputs if v.name}
        for node in graph.all_nodes():
            self._values.update(v.name for v in node.outputs if v.name)

    def node(self, wanted: str) -> str:
        return _take(self._nodes, wanted)

    def value(self, wanted: str) -> str:
        return _take(self._values, wanted)


def _take(taken: set[str], wanted: str) -> str:
    name, counter = wanted, 0
    while name in taken:
        counter += 1
        name = f"{wanted}{counter}"
    taken.add(name)
    return name


def make_node(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    name: str,
    output: str,
    attributes: Mapping[str, ir.Attr] | None = None,
    like: ir.Value | None = None,
    dtype: ir.DataType | None = None,
) -> ir.Node:
    """A single-output node of the default domain; the output takes shape and type of ``like``."""
    value = ir.Value(name=output)
    if like is not None:
        value.shape = like.shape
        value.type = ir.TensorType(dtype) if dtype is not None else like.type
    return ir.Node("", op_type, inputs, attributes or {}, outputs=[value], name=name)


def constant_node(array: NDArray[np.generic], name: str, output: str) -> ir.Node:
    """A ``Constant`` node holding ``array``."""
    tensor = ir.tensor(array, name=output)
    value = ir.Value(name=output, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    return ir.Node(
        "", "Constant", [], {"value": ir.AttrTensor("value", tensor)}, outputs=[value], name=name
    )


def make_tensor(array: NDArray[np.generic], name: str) -> ir.TensorProtocol:
    """A tensor stored in its typed field for INT32 and UINT64, in ``raw_data`` otherwise."""
    tensor = ir.tensor(array, name=name)
    field = TYPED_FIELDS.get(tensor.dtype)
    if field is None:
        return tensor
    proto = onnx.TensorProto()
    proto.name = name
    proto.data_type = int(tensor.dtype)
    proto.dims.extend(array.shape)
    getattr(proto, field).extend(array.reshape(-1).tolist())
    return ir.serde.TensorProtoTensor(proto)


def _named(content: Content, name: str) -> ir.TensorProtocol:
    if isinstance(content, np.ndarray):
        return make_tensor(content, name)
    content.name = name
    return content


def new_initializer(graph: ir.Graph, content: Content, name: str) -> ir.Value:
    """Register ``content`` under ``name`` (which must be free)."""
    tensor = _named(content, name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def set_constant(
    graph: ir.Graph, names: Names, node: ir.Node, index: int, content: Content
) -> ir.Value:
    """Make constant input ``index`` of ``node`` hold ``content``.

    An initializer that nobody else reads keeps its name and is overwritten; one that is shared, or
    a ``Constant`` node, is left to its other readers and a new initializer takes its place here.
    """
    value = node.inputs[index]
    assert value is not None
    assert value.name is not None
    if value.is_initializer() and len(value.uses()) == 1 and not value.is_graph_output():
        tensor = _named(content, value.name)
        value.const_value = tensor
        value.shape = ir.Shape(tensor.shape.numpy())
        value.type = ir.TensorType(tensor.dtype)
        return value
    own = new_initializer(graph, content, names.value(value.name))
    node.replace_input_with(index, own)
    producer = value.producer()
    if producer is not None and not value.uses() and not value.is_graph_output():
        graph.remove(producer, safe=True)
    return own


def insert_on_input(graph: ir.Graph, node: ir.Node, index: int, new: Sequence[ir.Node]) -> None:
    """Put the chain ``new`` in front of input ``index``; its last node feeds ``node``."""
    graph.insert_before(node, list(new))
    node.replace_input_with(index, new[-1].outputs[0])


def insert_after_output(graph: ir.Graph, node: ir.Node, new: ir.Node, names: Names) -> None:
    """Let ``new``, which reads output 0 of ``node``, feed everything that read it before.

    If that output is a graph output, its name moves to ``new`` and the old value is renamed
    ``<node>_output0``: graph outputs never change.
    """
    old, fresh = node.outputs[0], new.outputs[0]
    graph.insert_after(node, [new])
    for use in list(old.uses()):
        if use.node is not new:
            use.node.replace_input_with(use.idx, fresh)
    for position, output in enumerate(graph.outputs):
        if output is old:
            name = old.name
            old.name = names.value(f"{node.name}_output0")
            fresh.name = name
            fresh.shape, fresh.type = old.shape, old.type
            graph.outputs[position] = fresh


def forget_type(value: ir.Value) -> None:
    """Drop a type that the rewriting made wrong (it would end in ``value_info``)."""
    value.type = None
    value.shape = None
