"""Which tensors of the QDQ file carry integers, and on which grid.

A runtime fuses ``DequantizeLinear -> Conv -> QuantizeLinear`` into an integer kernel, so the output
of a quantised layer must be quantised too, with the grid that its reader expects. The rules:

* tensors joined by operators that keep values (MaxPool, Reshape, ...) share one grid;
* its grid is the one its quantised reader was calibrated with (the widest, if readers differ), else
  it comes from the range seen in calibration;
* a ReLU or Clip(0, max) behind an integer kernel is dropped: quantisation to a grid that begins at
  0 and ends at or below ``max`` does its work;
* Add, Concat and pooling compute on integers if all their inputs do and some integer node reads the
  result; everything else stays float;
* what a rolled-back layer reads stays float too, at the price of the kernel that makes it: rounding
  that tensor is what the roll-back avoids;
* average pooling with ``ceil_mode`` stays float, see ``ceil_pool``;
* LSTM and GRU stay float, whether the record names them or not, and so does what they read:
  ``DequantizeLinear`` has nowhere to stand inside their loop, and no runtime fuses a recurrent node
  with the ones around it to an integer kernel. Their weights lie on the record's grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from workbench.engine.export.constants import constant_array, constant_shape
from workbench.engine.export.plan import QuantizedNode
from workbench.engine.files.sidecar import TensorRange
from workbench.engine.graph.rnn import RNN_TYPES

KEEPS_VALUES = frozenset(
    {
        "MaxPool",
        "Flatten",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "DepthToSpace",
        "SpaceToDepth",
    }
)
JOINS = frozenset({"Add", "Concat", "GlobalAveragePool", "AveragePool"})
FUSED = frozenset({"Conv", "AveragePool"})
"""Layers that have an integer kernel only when their output is quantised."""

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", *RNN_TYPES})

LEVELS = 255


@dataclass(frozen=True)
class Grid:
    """``real = (code - zero_point) * scale`` with uint8 codes.

    The record's int8 offset moves by 128. Unsigned is what ONNX Runtime's x86 kernels are made for:
    with int8 activations half of the convolutions of a ResNet stay float there.
    """

    scale: float
    zero_point: int

    @property
    def span(self) -> float:
        return self.scale * LEVELS


def layer_grid(layer: QuantizedNode) -> Grid:
    return Grid(layer.scale_d, layer.offset_d + 128)


class QdqPlan:
    """The decisions for one graph. ``grid(value)`` and ``quantized(value)`` are what matters."""

    def __init__(
        self, graph: ir.Graph, layers: list[QuantizedNode], ranges: Mapping[str, TensorRange]
    ) -> None:
        self._graph = graph
        self._ranges = ranges
        self._layers = {layer.node: layer for layer in layers}
        self._balancers = {
            data.producer()
            for layer in layers
            if layer.record.tensor_balance_factor and (data := layer.node.inputs[0]) is not None
        }
        self._outputs = {(layer.bias_add or layer.node).outputs[0]: layer.name for layer in layers}
        self.kernels: set[ir.Node] = {
            node
            for node in graph
            if node in self._layers or (node.op_type in JOINS and not ceil_pool(node))
        }
        self.folded: set[ir.Node] = set()
        self._parent: dict[ir.Value, ir.Value] = {}
        self._grids: dict[ir.Value, Grid | None] = {}
        while True:
            self._solve()
            doubtful = {n for n in self.kernels if n not in self._layers and not self._holds(n)}
            if not doubtful:
                break
            self.kernels -= doubtful

    def grid(self, value: ir.Value) -> Grid | None:
        """The grid of ``value`` were it quantised; None when nothing is known of it."""
        return self._grids.get(self._root(value))

    def is_eight_bit(self, layer: QuantizedNode) -> bool:
        return layer.act_bits == 8

    def quantized(self, value: ir.Value) -> bool:
        """Whether ``value`` carries integers."""
        if self.grid(value) is None:
            return False
        return self.needed(value) or self._must(value)

    def from_integers(self, value: ir.Value) -> bool:
        """Whether the node that makes ``value`` leaves nothing but integers."""
        node = value.producer()
        if node is None:
            return False
        if node in self._layers:
            return node.op_type != "ConvTranspose" and self.is_eight_bit(self._layers[node])
        return node in self.kernels or self._passes(node)

    def reads_integers(self, node: ir.Node, index: int) -> bool:
        """Whether ``node`` wants operand ``index`` in integer form."""
        if node in self._layers:
            return index == 0 and self.is_eight_bit(self._layers[node])
        if node in self.kernels:
            return True
        if index != 0 or not self._passes(node) or not self.needed(node.outputs[0]):
            return False
        # Behind a float node it is enough to round once, right before the integer kernel.
        data = node.inputs[0]
        return data is not None and self.from_integers(self._root(data))

    def kept_float(self, value: ir.Value) -> bool:
        """Whether a layer that is not quantised, or a DMQ division, reads ``value``.

        Also behind an activation.
        """
        for use in value.uses():
            node = use.node
            if use.idx != 0:
                continue
            if node in self._balancers and node.op_type == "Mul":
                return True
            if ceil_pool(node):
                return True
            if node.op_type in _LAYERS:
                weight = node.inputs[1]
                constant = constant_shape(weight) is not None
                if constant and node not in self._layers:
                    return True
            elif (
                node.op_type in KEEPS_VALUES or activation_bounds(node) is not None
            ) and self.kept_float(node.outputs[0]):
                return True
        return False

    def needed(self, value: ir.Value) -> bool:
        """Whether some integer node reads ``value``, directly or through one that keeps values."""
        return any(self.reads_integers(use.node, use.idx) for use in value.uses())

    def _must(self, value: ir.Value) -> bool:
        if self.kept_float(value):
            return False
        node = value.producer()
        if node is not None and node in self.folded and node.inputs[0] is not None:
            return self._must(node.inputs[0])
        layer = self._layers.get(node) if node is not None else None
        return layer is not None and layer.kind in FUSED and self.is_eight_bit(layer)

    def _passes(self, node: ir.Node) -> bool:
        return node.op_type in KEEPS_VALUES or node in self.folded

    def _holds(self, node: ir.Node) -> bool:
        """An Add, Concat or pooling that is worth computing on integers."""
        operands = [v for v in node.inputs if v is not None]
        if not operands or not self.needed(node.outputs[0]):
            return False
        if self.grid(node.outputs[0]) is None:
            return False
        return all(self.grid(v) is not None and self._carried(v) for v in operands)

    def _carried(self, value: ir.Value) -> bool:
        """Whether ``value`` is in integer form for a reason other than the node that asks."""
        node = value.producer()
        if node is not None:
            layer = self._layers.get(node)
            if layer is not None and layer.kind != "ConvTranspose" and self.is_eight_bit(layer):
                return True
            if node in self.kernels and layer is None:
                return True
            if self._passes(node) and node.inputs[0] is not None and self._carried(node.inputs[0]):
                return True
        return bool(self._wants(value))

    def _solve(self) -> None:
        """Folded activations, groups of values and their grids, for the present kernels."""
        self.folded = set()
        for node in self._graph:
            if node.op_type in ("Relu", "Clip") and self._foldable(node):
                self.folded.add(node)
        self._parent = {}
        for node in self._graph:
            if self._passes(node) and node.inputs[0] is not None:
                self._parent[node.outputs[0]] = node.inputs[0]
        members: dict[ir.Value, list[ir.Value]] = {}
        values = [*self._graph.inputs, *(v for n in self._graph for v in n.outputs)]
        for value in values:
            members.setdefault(self._root(value), []).append(value)
        self._grids = {}
        for root, group in members.items():
            self._grids[root] = self._choose(root, group)

    def _root(self, value: ir.Value) -> ir.Value:
        while value in self._parent:
            value = self._parent[value]
        return value

    def _foldable(self, node: ir.Node) -> bool:
        """All that stands between an integer kernel and this activation is read only once."""
        if activation_bounds(node) is None or self.kept_float(node.outputs[0]):
            return False
        value = node.inputs[0]
        while value is not None:
            if len(value.uses()) != 1 or value.is_graph_output():
                return False
            producer = value.producer()
            if producer is None:
                return False
            if producer in self._layers:
                layer = self._layers[producer]
                if not self.is_eight_bit(layer):
                    return False
                if layer.kind in FUSED:
                    return True
                return layer.kind == "Gemm" and bool(self._wants(node.outputs[0]))
            if producer in self.kernels:
                return True
            if not self._passes(producer):
                return False
            value = producer.inputs[0]
        return False

    def _wants(self, value: ir.Value) -> list[Grid]:
        """Grids of the quantised layers that read ``value``, also through keepers of values."""
        found = []
        for use in value.uses():
            layer = self._layers.get(use.node)
            if layer is not None and use.idx == 0:
                if self.is_eight_bit(layer):
                    found.append(layer_grid(layer))
            elif use.idx == 0 and self._passes(use.node):
                found += self._wants(use.node.outputs[0])
        return found

    def _choose(self, root: ir.Value, group: list[ir.Value]) -> Grid | None:
        wanted = self._wants(root)
        low, high = self._limits(root, group)
        if wanted:
            grid = max(wanted, key=lambda g: g.span)
        else:
            seen = self._range(root)
            if seen is None:
                return self._pooled(root)
            bottom, top = min(0.0, max(seen.low, low)), max(0.0, min(seen.high, high))
            scale = float(np.float32((top - bottom) / LEVELS)) or 1.0
            grid = Grid(scale, int(np.clip(np.rint(-bottom / scale), 0, LEVELS)))
        if low >= 0.0:
            # Symmetric int8 leaves its negative half unused here: the same step from 0 upwards
            # loses nothing, makes the activation foldable, and keeps what int8 would clip.
            grid = Grid(grid.scale, 0)
        if grid.zero_point == 0 and grid.span > high:
            grid = Grid(float(np.nextafter(np.float32(high / LEVELS), np.float32(0))), 0)
        return grid

    def _limits(self, root: ir.Value, group: list[ir.Value]) -> tuple[float, float]:
        """What an activation, folded into the group or just before it, lets through."""
        low, high = -np.inf, np.inf
        nodes = [v.producer() for v in group if v.producer() in self.folded]
        for node in (root.producer(), *nodes):
            bounds = activation_bounds(node) if node is not None else None
            if bounds is not None:
                low, high = max(low, bounds[0]), min(high, bounds[1])
        return float(low), float(high)

    def _range(self, value: ir.Value) -> TensorRange | None:
        if value in self._outputs:
            return self._ranges.get(self._outputs[value])
        if value.is_graph_input():
            return self._ranges.get(f"input:{value.name}")
        node = value.producer()
        if node is None:
            return None
        bounds = activation_bounds(node)
        source = node.inputs[0] if node.inputs else None
        if bounds is not None and source is not None:
            seen = self._range(source)
            if seen is None:
                return None
            return TensorRange(*(min(max(v, bounds[0]), bounds[1]) for v in (seen.low, seen.high)))
        if node.op_type in KEEPS_VALUES and source is not None:
            return self._range(source)
        return self._ranges.get(node.name or "")

    def _pooled(self, value: ir.Value) -> Grid | None:
        """A mean lies in the range of what it averages."""
        node = value.producer()
        if node is None or node.op_type not in ("GlobalAveragePool", "AveragePool"):
            return None
        source = node.inputs[0]
        if source is None or node in self._layers:
            return None
        root = self._root(source)
        if root not in self._grids:
            return None
        return self._grids[root]


def ceil_pool(node: ir.Node) -> bool:
    """An average pooling whose last windows may reach over the edge.

    ONNX Runtime's integer kernel divides those by the size of the whole window, its float kernel by
    what lies inside: such a pooling must not meet integers.
    """
    return node.op_type == "AveragePool" and node.attributes.get_int("ceil_mode", 0) == 1


def activation_bounds(node: ir.Node) -> tuple[float, float] | None:
    """Lowest and highest output of a ReLU or of a Clip from 0; None for any other node."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip" or len(node.inputs) < 2:
        return None
    numbers = list(_clip_limits(node))
    if numbers[0] != 0.0 or numbers[1] is None or numbers[1] <= 0.0:
        return None
    return 0.0, numbers[1]


def _clip_limits(node: ir.Node) -> Iterator[float | None]:
    for index, default in ((1, -np.inf), (2, np.inf)):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            yield float(default)
        else:
            array = constant_array(value)
            yield None if array is None or array.size != 1 else float(array.reshape(-1)[0])
