"""The nodes between AscendQuant and AscendDequant, computed exactly.

Operands are tensors: codes (offset already subtracted) in float32, weights and biases as stored.
Results are integers in float64, exact below 2**53. Padding adds 0, which is real 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.engine.errors import WrongState
from workbench.engine.export.arithmetic import unpack_int4

Attributes = Mapping[str, Any]

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def compute(node: onnx.NodeProto, operands: list[Tensor | None]) -> Tensor:
    """The node's exact result. Raises ``RuntimeError`` for an operator not known here."""
    operation = _OPERATIONS.get(node.op_type)
    if operation is None:
        raise WrongState(
            f"{node.op_type} between AscendQuant and AscendDequant is not known; "
            f"allowed: {', '.join(_OPERATIONS)}",
            where=f"node {node.name}",
        )
    return operation(attributes_of(node), operands)


def _conv(attributes: Attributes, operands: list[Tensor | None]) -> Tensor:
    x, weight, bias = _three(operands)
    groups = int(attributes.get("group", 1))
    weight = _unpacked(weight, 1, x.shape[1] // groups)
    rank = weight.dim() - 2
    pads = _pads(attributes, rank)
    padded = F.pad(
        x.double(), [p for i in reversed(range(rank)) for p in (pads[i], pads[i + rank])]
    )
    return _CONV[rank](
        padded,
        weight.double(),
        None if bias is None else bias.double(),
        list(attributes.get("strides", [1] * rank)),
        0,
        list(attributes.get("dilations", [1] * rank)),
        groups,
    )


def _conv_transpose(attributes: Attributes, operands: list[Tensor | None]) -> Tensor:
    x, weight, bias = _three(operands)
    weight = _unpacked(weight, 0, x.shape[1])
    rank = weight.dim() - 2
    pads = _pads(attributes, rank)
    if attributes.get("output_shape"):
        raise WrongState("ConvTranspose with output_shape is not handled by the simulator")
    y = _TRANSPOSED[rank](
        x.double(),
        weight.double(),
        None if bias is None else bias.double(),
        list(attributes.get("strides", [1] * rank)),
        0,
        list(attributes.get("output_padding", [0] * rank)),
        int(attributes.get("group", 1)),
        list(attributes.get("dilations", [1] * rank)),
    )
    window = tuple(slice(pads[i], y.shape[2 + i] - pads[i + rank]) for i in range(rank))
    return y[(slice(None), slice(None), *window)]


def _matmul(_: Attributes, operands: list[Tensor | None]) -> Tensor:
    x, weight, _none = _three(operands)
    return torch.matmul(x.double(), _unpacked(weight, 0, x.shape[-1]).double())


def _gemm(attributes: Attributes, operands: list[Tensor | None]) -> Tensor:
    x, weight, bias = _three(operands)
    if attributes.get("transB", 0):
        weight = weight.t()
    y = torch.matmul(x.double(), _unpacked(weight, 0, x.shape[-1]).double())
    return y if bias is None else y + bias.double()


def _add(_: Attributes, operands: list[Tensor | None]) -> Tensor:
    left, right, _none = _three(operands)
    return left.double() + right.double()


def _transpose(attributes: Attributes, operands: list[Tensor | None]) -> Tensor:
    x = operands[0]
    assert x is not None
    return x.permute(*attributes.get("perm", list(reversed(range(x.dim())))))


def _cast(_: Attributes, operands: list[Tensor | None]) -> Tensor:
    assert operands[0] is not None
    return operands[0]


def _pad(attributes: Attributes, operands: list[Tensor | None]) -> Tensor:
    x = operands[0]
    assert x is not None
    amounts = (
        [int(p) for p in operands[1].tolist()]
        if len(operands) > 1 and operands[1] is not None
        else []
    )
    rank = len(amounts) // 2
    mode = attributes.get("mode", b"constant")
    if mode != b"constant" or rank != x.dim():
        raise WrongState("only constant padding of all axes is handled by the simulator")
    return F.pad(x, [p for i in reversed(range(rank)) for p in (amounts[i], amounts[i + rank])])


_OPERATIONS: dict[str, Callable[[Attributes, list[Tensor | None]], Tensor]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _add,
    "Transpose": _transpose,
    "Cast": _cast,
    "Pad": _pad,
}


def _three(operands: list[Tensor | None]) -> tuple[Tensor, Tensor, Tensor | None]:
    first, second, *rest = operands
    assert first is not None
    assert second is not None
    return first, second, rest[0] if rest else None


def _unpacked(weight: Tensor, axis: int, channels: int) -> Tensor:
    """A weight with half the expected input channels holds two INT4 codes a byte."""
    if weight.shape[axis] * 2 != channels:
        return weight
    packed = weight.numpy().astype(np.int8)
    return torch.from_numpy(unpack_int4(packed, axis))


def _pads(attributes: Attributes, rank: int) -> list[int]:
    mode = attributes.get("auto_pad", b"NOTSET")
    if mode not in (b"NOTSET", b"VALID", b""):
        raise WrongState(
            f"auto_pad = {mode.decode()} is not handled by the simulator",
            hint="Export the float model with explicit pads.",
        )
    return [int(p) for p in attributes.get("pads", [0] * (2 * rank))]
