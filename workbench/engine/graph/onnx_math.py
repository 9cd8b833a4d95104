"""ONNX operators that compute element by element, along an axis, or with dense products."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.engine.graph.onnx_builder import OnnxBuilder, Step, Value, handles, torch_dtype

_UNARY: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Ceil": torch.ceil, "Cos": torch.cos, "Erf": torch.erf, "Exp": torch.exp,
    "Floor": torch.floor, "HardSwish": F.hardswish, "Identity": torch.clone, "Log": torch.log,
    "Mish": F.mish, "Neg": torch.neg, "Not": torch.logical_not, "Reciprocal": torch.reciprocal,
    "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign,
    "Sin": torch.sin, "Softplus": F.softplus, "Softsign": F.softsign, "Sqrt": torch.sqrt,
    "Tan": torch.tan, "Tanh": torch.tanh,
}  # fmt: skip
_BINARY: dict[str, Callable[..., Any]] = {
    "Add": torch.add, "And": torch.logical_and, "Equal": torch.eq, "Greater": torch.gt,
    "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le, "Mul": torch.mul,
    "Or": torch.logical_or, "PRelu": torch.nn.functional.prelu, "Pow": torch.pow, "Sub": torch.sub,
    "Xor": torch.logical_xor,
}  # fmt: skip
_ON_SHAPES = {"Add": operator.add, "Sub": operator.sub, "Mul": operator.mul}
_REDUCE: dict[str, Callable[..., Any]] = {
    "ReduceMax": torch.amax, "ReduceMean": torch.mean, "ReduceMin": torch.amin,
    "ReduceSum": torch.sum,
}  # fmt: skip


@handles(*_UNARY)
def unary(build: OnnxBuilder, step: Step) -> Value:
    if step.node.op_type == "Identity":
        return step[0]
    return build.call(_UNARY[step.node.op_type], build.tensor(step[0]))


@handles(*(name for name in _BINARY if name not in ("PRelu", "Pow")))
def binary(build: OnnxBuilder, step: Step) -> Value:
    name = step.node.op_type
    if name in _ON_SHAPES and any(isinstance(step[i], list) for i in (0, 1)):
        left, right = (build.ints(step[i]) for i in (0, 1))
        if (
            left is not None
            and right is not None
            and 1 in (len(left), len(right), len(left) // len(right))
        ):
            return _on_shapes(build, _ON_SHAPES[name], left, right)
    return build.call(_BINARY[name], build.tensor(step[0]), build.tensor(step[1]))


@handles("Div")
def divide(build: OnnxBuilder, step: Step) -> Value:
    if any(isinstance(step[i], list) for i in (0, 1)):
        left, right = (build.ints(step[i]) for i in (0, 1))
        if left is not None and right is not None:
            return _on_shapes(build, operator.floordiv, left, right)
    return build.call(onnx_div, build.tensor(step[0]), build.tensor(step[1]))


def onnx_div(a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided towards zero."""
    if a.is_floating_point():
        return torch.div(a, b)
    return torch.div(a, b, rounding_mode="trunc")


def _on_shapes(
    build: OnnxBuilder, function: Callable[..., Any], left: list[Any], right: list[Any]
) -> list[Any]:
    length = max(len(left), len(right))
    left, right = (side * length if len(side) == 1 else side for side in (left, right))
    return [
        function(a, b) if isinstance(a, int) and isinstance(b, int) else build.call(function, a, b)
        for a, b in zip(left, right, strict=True)
    ]


@handles("Pow")
def power(build: OnnxBuilder, step: Step) -> Value:
    exponent = step[1]
    if isinstance(exponent, np.ndarray) and exponent.size == 1:
        return build.call(torch.pow, build.tensor(step[0]), float(exponent.reshape(())))
    return build.call(torch.pow, build.tensor(step[0]), build.tensor(exponent))


@handles("PRelu")
def prelu(build: OnnxBuilder, step: Step) -> Value:
    return build.call(onnx_prelu, build.tensor(step[0]), build.tensor(step[1]))


def onnx_prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@handles("Min", "Max", "Sum", "Mean")
def variadic(build: OnnxBuilder, step: Step) -> Value:
    name = step.node.op_type
    function = {"Min": torch.minimum, "Max": torch.maximum}.get(name, torch.add)
    parts = [build.tensor(arg) for arg in step.args]
    total = parts[0]
    for part in parts[1:]:
        total = build.call(function, total, part)
    return build.call(torch.div, total, len(parts)) if name == "Mean" else total


@handles("Where")
def where(build: OnnxBuilder, step: Step) -> Value:
    return build.call(torch.where, *(build.tensor(step[i]) for i in range(3)))


@handles("Clip")
def clip(build: OnnxBuilder, step: Step) -> Value:
    bounds = [step[i] for i in (1, 2)]
    if all(b is None for b in bounds):
        return step[0]
    if all(b is None or (isinstance(b, np.ndarray) and b.size == 1) for b in bounds):
        low, high = (None if b is None else b.reshape(()).item() for b in bounds)
        return build.call(torch.clamp, build.tensor(step[0]), low, high)
    low, high = (None if b is None else build.tensor(b) for b in bounds)
    return build.call(torch.clamp, build.tensor(step[0]), low, high)


@handles("LeakyRelu", "Elu", "Selu", "Celu", "HardSigmoid", "Gelu", "ThresholdedRelu")
def activation(build: OnnxBuilder, step: Step) -> Value:
    name, x = step.node.op_type, build.tensor(step[0])
    if name == "LeakyRelu":
        return build.call(F.leaky_relu, x, step.attribute("alpha", 0.01))
    if name == "Elu":
        return build.call(F.elu, x, step.attribute("alpha", 1.0))
    if name == "Celu":
        return build.call(F.celu, x, step.attribute("alpha", 1.0))
    if name == "ThresholdedRelu":
        return build.call(F.threshold, x, step.attribute("alpha", 1.0), 0.0)
    if name == "Gelu":
        return build.call(F.gelu, x, approximate=step.attribute("approximate", "none"))
    if name == "HardSigmoid":
        alpha, beta = step.attribute("alpha", 0.2), step.attribute("beta", 0.5)
        return build.call(onnx_hard_sigmoid, x, alpha, beta)
    return build.call(
        onnx_selu, x, step.attribute("alpha", 1.6732632), step.attribute("gamma", 1.0507010)
    )


def onnx_hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def onnx_selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    return gamma * (torch.clamp(x, min=0) + torch.clamp(alpha * (torch.exp(x) - 1), max=0))


@handles("Softmax", "LogSoftmax")
def softmax(build: OnnxBuilder, step: Step) -> Value:
    function = F.softmax if step.node.op_type == "Softmax" else F.log_softmax
    axis = step.attribute("axis", -1 if build.opset >= 13 else 1)
    rank = build.rank(step.node.input[0])
    if build.opset < 13 and rank is not None and axis not in (-1, rank - 1):
        raise build.refuse(step, f"axis {axis} of opset {build.opset} means all axes from there on")
    return build.call(function, build.tensor(step[0]), dim=axis)


@handles(*_REDUCE, "ReduceL2", "ReduceProd")
def reduce(build: OnnxBuilder, step: Step) -> Value:
    axes = step.attribute("axes")
    if axes is None and step[1] is not None:
        axes = build.fixed(step, 1, "which axes are reduced")
    keep = bool(step.attribute("keepdims", 1))
    x = build.tensor(step[0])
    name = step.node.op_type
    if not axes:
        if step.attribute("noop_with_empty_axes", 0):
            return x
        rank = build.rank(step.node.input[0])
        if rank is None:
            raise build.refuse(step, "the rank of its input is not known")
        axes = list(range(rank))
    if name == "ReduceL2":
        return build.call(torch.linalg.vector_norm, x, 2, tuple(axes), keep)
    if name == "ReduceProd":
        if len(axes) != 1:
            raise build.refuse(step, f"a product over axes {axes} is not read, only over one")
        return build.call(torch.prod, x, axes[0], keep)
    return build.call(_REDUCE[name], x, tuple(axes), keep)


@handles("ArgMax", "ArgMin")
def extreme(build: OnnxBuilder, step: Step) -> Value:
    function = torch.argmax if step.node.op_type == "ArgMax" else torch.argmin
    if step.attribute("select_last_index", 0):
        raise build.refuse(step, "select_last_index is not read")
    axis, keep = step.attribute("axis", 0), bool(step.attribute("keepdims", 1))
    return build.call(function, build.tensor(step[0]), axis, keep)


@handles("CumSum")
def cumulative(build: OnnxBuilder, step: Step) -> Value:
    if step.attribute("exclusive", 0) or step.attribute("reverse", 0):
        raise build.refuse(step, "exclusive and reverse are not read")
    return build.call(torch.cumsum, build.tensor(step[0]), build.fixed(step, 1, "its axis")[0])


@handles("Einsum")
def einsum(build: OnnxBuilder, step: Step) -> Value:
    parts = [build.tensor(arg) for arg in step.args]
    return build.call(torch.einsum, step.attribute("equation"), *parts)


@handles("Cast")
def cast(build: OnnxBuilder, step: Step) -> Value:
    dtype = torch_dtype(step.attribute("to"))
    if dtype is None:
        raise build.refuse(step, "its type is not one that torch computes with")
    if isinstance(step[0], list) and dtype in (torch.int64, torch.int32):
        return step[0]
    if isinstance(step[0], np.ndarray) and dtype != torch.bfloat16:
        return step[0].astype(torch.empty(0, dtype=dtype).numpy().dtype)
    return build.call(torch.Tensor.to, build.tensor(step[0]), dtype)


@handles("Dropout")
def dropout(build: OnnxBuilder, step: Step) -> Value:
    return step[0]
