"""What a QDQ model says of one input of one node: its grid, or the integers of a constant.

Source: specification chapter 30 section 10.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from workbench.engine.errors import WrongState
from workbench.engine.export.arithmetic import FloatArray
from workbench.engine.export.constants import constant_array, constant_tensor

LAYOUT_OPERATORS = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
"""What may stand between a constant, its Q/DQ pair and the node: values stay, places change."""

_PAIR = ("QuantizeLinear", "DequantizeLinear")

_BITS = {
    ir.DataType.INT4: 4,
    ir.DataType.UINT4: 4,
    ir.DataType.INT8: 8,
    ir.DataType.UINT8: 8,
    ir.DataType.INT16: 16,
    ir.DataType.UINT16: 16,
}
_UNSIGNED = (ir.DataType.UINT4, ir.DataType.UINT8, ir.DataType.UINT16)


class Unfit(Exception):
    """Why a Q/DQ pair cannot be converted; never leaves this package."""


@dataclass(frozen=True)
class Grid:
    """One scale and the signed code of 0."""

    scale: float
    offset: int
    bits: int


@dataclass(frozen=True)
class QuantisedInput:
    """``source`` is the float tensor before the pair."""

    source: ir.Value
    grid: Grid


@dataclass(frozen=True)
class QuantisedConstant:
    """Signed integers and the scale of each, in the layout in which the node reads them.

    ``one_scale``: the pair has a single scale.
    """

    codes: FloatArray
    scales: FloatArray
    bits: int
    one_scale: bool

    @property
    def values(self) -> FloatArray:
        return self.codes * self.scales


def is_quantised(value: ir.Value | None) -> bool:
    """Whether a ``DequantizeLinear`` leads to ``value``, maybe through a change of layout."""
    return value is not None and _dequantise(value)[0] is not None


def is_constant(value: ir.Value | None) -> bool:
    """Whether nothing but Q, DQ and changes of layout lie between ``value`` and a constant."""
    while value is not None and constant_tensor(value) is None:
        node = value.producer()
        if node is None or node.op_type not in (*LAYOUT_OPERATORS, *_PAIR):
            return False
        value = node.inputs[0]
    return value is not None


def dynamic_input(value: ir.Value) -> QuantisedInput:
    """The Q/DQ pair right before ``value``; raises ``Unfit``."""
    dequantise = value.producer()
    if dequantise is None or dequantise.op_type != "DequantizeLinear":
        raise Unfit("a change of layout stands between its Q/DQ pair and the node")
    codes = dequantise.inputs[0]
    quantise = codes.producer() if codes is not None else None
    if quantise is None or quantise.op_type != "QuantizeLinear":
        raise Unfit("no QuantizeLinear is paired with its DequantizeLinear")
    grid = node_grid(quantise)
    if node_grid(dequantise) != grid:
        raise Unfit("QuantizeLinear and DequantizeLinear have different factors")
    source = quantise.inputs[0]
    assert source is not None
    if source.dtype not in (None, ir.DataType.FLOAT):
        raise Unfit(f"what is quantised is {source.dtype.name}; allowed: FLOAT")
    return QuantisedInput(source, grid)


def node_grid(node: ir.Node) -> Grid:
    """The factors of a Q or DQ with a single scale; raises ``Unfit``."""
    scales, zeros, dtype = _factors(node)
    if scales.size != 1:
        raise Unfit(f"an activation has {scales.size} scales; allowed: 1")
    return Grid(float(scales.reshape(-1)[0]), int(zeros.reshape(-1)[0]), _BITS[dtype])


def constant_input(value: ir.Value) -> QuantisedConstant:
    """The integers behind a constant ``value``; raises ``Unfit`` where it is none."""
    dequantise, after = _dequantise(value)
    if dequantise is None:
        raise Unfit("it is not quantised")
    scales, zeros, dtype = _factors(dequantise)
    stored = dequantise.inputs[0]
    assert stored is not None
    quantise = stored.producer()
    if quantise is not None and quantise.op_type == "QuantizeLinear":
        scales_before, zeros_before, _ = _factors(quantise)
        if (
            not np.array_equal(scales_before, scales)
            or not np.array_equal(zeros_before, zeros)
            or (scales.size > 1 and _axis(quantise) != _axis(dequantise))
        ):
            raise Unfit("QuantizeLinear and DequantizeLinear have different factors")
        floats = _constant(quantise.inputs[0])
        scale = _spread(scales, floats.shape, _axis(dequantise))
        zero = _spread(zeros, floats.shape, _axis(dequantise))
        half = 2 ** (_BITS[dtype] - 1)
        codes = np.clip(np.rint(floats / scale) + zero, -half, half - 1)
    else:
        codes = _constant(stored)
        if dtype in _UNSIGNED:
            codes = codes - np.float32(2 ** (_BITS[dtype] - 1))
        scale = _spread(scales, codes.shape, _axis(dequantise))
        zero = _spread(zeros, codes.shape, _axis(dequantise))
    codes = (codes - zero).astype(np.float32)
    if dtype not in (ir.DataType.INT32,) and np.any(zero):
        raise Unfit("its zero point is not 0")
    for node in reversed(after):
        codes, scale = _relaid(node, codes), _relaid(node, scale)
    return QuantisedConstant(codes, scale, _BITS.get(dtype, 32), scales.size == 1)


def channel_scales(
    constant: QuantisedConstant, axis: int, groups: int, kind: str
) -> tuple[float, ...]:
    """One scale, or one for each output channel of a weight; raises ``Unfit``.

    ``axis`` and ``groups``: where the output channels are stored; ``kind`` is the node's type.
    """
    if constant.one_scale:
        return (float(constant.scales.reshape(-1)[0]),)
    scales = constant.scales
    if kind == "ConvTranspose":
        rows, columns = scales.shape[:2]
        parted = scales.reshape(groups, rows // groups, columns, -1)
        flat = parted.transpose(0, 2, 1, 3).reshape(groups * columns, -1)
    else:
        flat = np.moveaxis(scales, axis, 0).reshape(scales.shape[axis], -1)
    if np.any(flat != flat[:, :1]):
        raise Unfit("its scales do not lie along the output channels")
    return tuple(float(scale) for scale in flat[:, 0])


def _dequantise(value: ir.Value) -> tuple[ir.Node | None, list[ir.Node]]:
    """The DequantizeLinear behind ``value``, and the changes of layout in between."""
    between: list[ir.Node] = []
    node = value.producer()
    while node is not None and node.op_type in LAYOUT_OPERATORS:
        between.append(node)
        before = node.inputs[0]
        node = before.producer() if before is not None else None
    if node is None or node.op_type != "DequantizeLinear":
        return None, []
    return node, between


def _factors(node: ir.Node) -> tuple[FloatArray, NDArray[np.int64], ir.DataType]:
    """Scales, signed zero points and the integers' type of a Q or DQ."""
    if node.attributes.get_int("block_size", 0):
        raise Unfit("blocks with scales of their own are not supported")
    scales = constant_array(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zeros = constant_array(given)
    if scales is None or (given is not None and zeros is None):
        raise Unfit("its scale or zero point is not a constant")
    if scales.dtype != np.float32:
        raise Unfit(f"its scale is {scales.dtype}; allowed: float32")
    codes = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    dtype = given.dtype if given is not None else codes.dtype if codes is not None else None
    if given is None and node.op_type == "QuantizeLinear":
        dtype = ir.DataType(node.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8)
    if dtype is None or (dtype not in _BITS and dtype != ir.DataType.INT32):
        raise Unfit(f"its integers are {dtype.name if dtype else 'of unknown type'}")
    shift = 2 ** (_BITS[dtype] - 1) if dtype in _UNSIGNED else 0
    if zeros is None:
        zeros = np.zeros(scales.shape, np.int64)
    return scales.astype(np.float32), zeros.astype(np.int64) - shift, dtype


def _axis(node: ir.Node) -> int:
    return node.attributes.get_int("axis", 1)


def _constant(value: ir.Value | None) -> FloatArray:
    """A constant in float32, changes of layout applied."""
    array = constant_array(value)
    if array is not None:
        return array.astype(np.float32)
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in LAYOUT_OPERATORS:
        raise Unfit("it is not a constant")
    return _relaid(node, _constant(node.inputs[0]))


def _spread(factors: NDArray[np.generic], shape: tuple[int, ...], axis: int) -> FloatArray:
    """One factor for each element."""
    if factors.size > 1:
        sizes = [1] * len(shape)
        sizes[axis] = factors.size
        factors = factors.reshape(sizes)
    else:
        factors = factors.reshape(())
    return np.broadcast_to(factors.astype(np.float32), shape)


def _relaid(node: ir.Node, array: FloatArray) -> FloatArray:
    """What a node of ``LAYOUT_OPERATORS`` makes of a constant."""
    if node.op_type == "Transpose":
        return array.transpose(node.attributes.get_ints("perm", range(array.ndim)[::-1]))
    if node.op_type == "Flatten":
        axis = node.attributes.get_int("axis", 1)
        return array.reshape(int(np.prod(array.shape[:axis])), -1)
    # Before opset 13 the axes of Squeeze and Unsqueeze were an attribute.
    numbers = [int(n) for n in node.attributes.get_ints("axes", [])]
    if len(node.inputs) > 1:
        operand = constant_array(node.inputs[1])
        if operand is None:
            raise Unfit(f"the target of a {node.op_type} before it is not a constant")
        numbers = [int(n) for n in operand.reshape(-1)]
    if node.op_type == "Reshape":
        keep = not node.attributes.get_int("allowzero", 0)
        sizes = [array.shape[i] if n == 0 and keep else n for i, n in enumerate(numbers)]
        return array.reshape(sizes)
    if node.op_type == "Unsqueeze":
        return np.expand_dims(array, tuple(numbers))
    return np.squeeze(array, tuple(numbers) or None)


def check_converted(
    graph: ir.Graph, reasons: Mapping[str, str], handled: Collection[ir.Node]
) -> None:
    """Raise ``RuntimeError`` when a Q or DQ is left that is not ``handled``, or for ``reasons``."""
    left = [n for n in graph.all_nodes() if n.op_type in _PAIR and n not in handled]
    texts = [f"{name}: {reason}" for name, reason in reasons.items()]
    for node in left:
        readers = sorted({f"{u.node.op_type} {u.node.name}" for u in node.outputs[0].uses()})
        texts.append(f"{node.op_type} {node.name} is read by {', '.join(readers) or 'nothing'}")
    if texts:
        raise WrongState(
            "these Q/DQ nodes cannot be converted: " + "; ".join(texts),
            hint="Quantise both inputs of Conv, ConvTranspose, Gemm and MatMul, the inputs of Add, "
            "or a graph output, and nothing else.",
        )
