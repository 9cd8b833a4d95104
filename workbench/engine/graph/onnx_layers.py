"""ONNX operators with weights, normalisations and poolings, as torch layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from workbench.engine.graph.layer_modules import LayerCall, build_layer
from workbench.engine.graph.onnx_builder import OnnxBuilder, Step, Value, handles, to_tensor
from workbench.engine.graph.onnx_source import Array


@handles("Conv")
def conv(build: OnnxBuilder, step: Step) -> Value:
    x, weight = build.tensor(step[0]), step[1]
    spatial = len(_kernel(build, step, 1))
    before, after = _padding(build, step)
    if before != after:
        x = build.call(F.pad, x, _torch_pad(before, after))
        before = [0] * spatial
    settings = {
        "stride": tuple(step.attribute("strides", [1] * spatial)),
        "padding": tuple(before),
        "dilation": tuple(step.attribute("dilations", [1] * spatial)),
        "groups": step.attribute("group", 1),
    }
    if isinstance(weight, np.ndarray) and _constant_or_none(step[2]):
        return _layer(build, step, f"conv{spatial}d", x, settings)
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[spatial]
    return build.call(function, x, build.tensor(weight), _optional(build, step[2]), **settings)


@handles("ConvTranspose")
def conv_transpose(build: OnnxBuilder, step: Step) -> Value:
    x, weight = build.tensor(step[0]), step[1]
    spatial = len(_kernel(build, step, 1))
    if step.attribute("output_shape") or step.attribute("auto_pad", "NOTSET") != "NOTSET":
        raise build.refuse(step, "output_shape and auto_pad are not read")
    before, after = _padding(build, step)
    if before != after:
        raise build.refuse(step, f"its padding {before} and {after} differ")
    settings = {
        "stride": tuple(step.attribute("strides", [1] * spatial)),
        "padding": tuple(before),
        "output_padding": tuple(step.attribute("output_padding", [0] * spatial)),
        "groups": step.attribute("group", 1),
        "dilation": tuple(step.attribute("dilations", [1] * spatial)),
    }
    if isinstance(weight, np.ndarray) and _constant_or_none(step[2]):
        return _layer(build, step, f"conv_transpose{spatial}d", x, settings)
    functions = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
    return build.call(
        functions[spatial], x, build.tensor(weight), _optional(build, step[2]), **settings
    )


@handles("Gemm")
def gemm(build: OnnxBuilder, step: Step) -> Value:
    alpha, beta = step.attribute("alpha", 1.0), step.attribute("beta", 1.0)
    a, b, c = step[0], step[1], step[2]
    plain = alpha == 1.0 and (beta == 1.0 or c is None) and not step.attribute("transA", 0)
    if (
        plain
        and isinstance(b, np.ndarray)
        and _is_bias(c, b.shape[0 if step.attribute("transB", 0) else 1])
    ):
        weight = b if step.attribute("transB", 0) else np.ascontiguousarray(b.T)
        return _linear(build, step, build.tensor(a), weight, c)
    left = build.tensor(a)
    left = build.call(torch.t, left) if step.attribute("transA", 0) else left
    right = build.tensor(b)
    right = build.call(torch.t, right) if step.attribute("transB", 0) else right
    product = build.call(torch.mul, build.call(torch.matmul, left, right), alpha)
    if c is None:
        return product
    return build.call(torch.add, product, build.call(torch.mul, build.tensor(c), beta))


@handles("MatMul")
def matmul(build: OnnxBuilder, step: Step) -> Value:
    a, b = step[0], step[1]
    if not (isinstance(b, np.ndarray) and b.ndim == 2 and isinstance(a, fx.Node)):
        return build.call(torch.matmul, build.tensor(a), build.tensor(b))
    weight = np.ascontiguousarray(b.T)
    bias, result = _added_bias(build, step, weight.shape[0])
    out = _linear(build, step, a, weight, bias)
    if result:
        build.alias(result, out)
    return out


def _added_bias(build: OnnxBuilder, step: Step, channels: int) -> tuple[Array | None, str]:
    """The constant vector that the only consumer adds, and the name of that sum."""
    output = step.node.output[0]
    users = build.consumers.get(output, [])
    if len(users) != 1 or users[0].op_type != "Add" or output in build.source.outputs:
        return None, ""
    other = (
        next(name for name in users[0].input if name != output)
        if len(set(users[0].input)) == 2
        else ""
    )
    bias = build.source.constants.get(other)
    if bias is None or bias.shape != (channels,):
        return None, ""
    return bias, users[0].output[0]


def _linear(
    build: OnnxBuilder, step: Step, x: fx.Node, weight: Array, bias: Array | None
) -> fx.Node:
    path = build.layer_path(step, 1)
    tensors = {"weight": to_tensor(weight)}
    if bias is not None:
        tensors["bias"] = to_tensor(np.broadcast_to(bias.reshape(-1), (weight.shape[0],)))
    return _add(build, path, LayerCall("linear", path, "", {}, {}), tensors, x)


@handles("BatchNormalization")
def batch_norm(build: OnnxBuilder, step: Step) -> Value:
    rank = build.rank(step.node.input[0]) or build.rank(step.node.output[0]) or 4
    if step.attribute("training_mode", 0):
        raise build.refuse(step, "it is in training mode")
    x, stored = build.tensor(step[0]), [step[i] for i in range(1, 5)]
    epsilon = step.attribute("epsilon", 1e-5)
    if rank not in (2, 3, 4, 5) or not all(isinstance(each, np.ndarray) for each in stored):
        scale, shift, mean, variance = (build.tensor(each) for each in stored)
        return build.call(F.batch_norm, x, mean, variance, scale, shift, False, 0.1, epsilon)
    roles = ("weight", "bias", "running_mean", "running_var")
    tensors = {role: to_tensor(each) for role, each in zip(roles, stored, strict=True)}
    settings = {"eps": epsilon, "momentum": 1 - step.attribute("momentum", 0.9), "rank": rank}
    path = build.layer_path(step, 1)
    return _add(build, path, LayerCall("batch_norm", path, "", {}, settings), tensors, x)


@handles("LayerNormalization")
def layer_norm(build: OnnxBuilder, step: Step) -> Value:
    axis = step.attribute("axis", -1)
    rank = build.rank(step.node.input[0])
    if axis >= 0 and rank is None:
        raise build.refuse(step, "the rank of its input is not known")
    shape = np.shape(step[1]) if axis in (-1, (rank or 0) - 1) else None
    if shape is None:
        raise build.refuse(step, f"axis {axis} is not read, only the last one is")
    x, scale = build.tensor(step[0]), build.tensor(step[1])
    return build.call(
        F.layer_norm,
        x,
        list(shape),
        scale,
        _optional(build, step[2]),
        step.attribute("epsilon", 1e-5),
    )


@handles("InstanceNormalization")
def instance_norm(build: OnnxBuilder, step: Step) -> Value:
    x, scale, shift = (build.tensor(step[i]) for i in range(3))
    return build.call(
        F.instance_norm, x, None, None, scale, shift, True, 0.1, step.attribute("epsilon", 1e-5)
    )


@handles("AveragePool")
def average_pool(build: OnnxBuilder, step: Step) -> Value:
    kernel = step.attribute("kernel_shape")
    before, after = _padding(build, step)
    wide = any(2 * p > k for p, k in zip(before, kernel, strict=True))
    if before != after or wide or any(d != 1 for d in step.attribute("dilations", [1])):
        raise build.refuse(step, f"padding {before} and {after} or its dilation is not read")
    settings = {
        "kernel_size": tuple(kernel),
        "stride": tuple(step.attribute("strides", [1] * len(kernel))),
        "padding": tuple(before),
        "ceil_mode": bool(step.attribute("ceil_mode", 0)),
        "count_include_pad": bool(step.attribute("count_include_pad", 0)),
    }
    x = build.tensor(step[0])
    if len(kernel) == 2:
        path = build.node_path(step)
        return _add(build, path, LayerCall("avg_pool2d", path, "", {}, settings), {}, x)
    function = F.avg_pool1d if len(kernel) == 1 else F.avg_pool3d
    return build.call(function, x, **settings)


@handles("MaxPool")
def max_pool(build: OnnxBuilder, step: Step) -> Value:
    if len([name for name in step.node.output if name]) > 1:
        raise build.refuse(step, "its indices are not read")
    kernel = step.attribute("kernel_shape")
    before, after = _padding(build, step)
    x = build.tensor(step[0])
    if before != after or any(2 * p > k for p, k in zip(before, kernel, strict=True)):
        x = build.call(F.pad, x, _torch_pad(before, after), value=float("-inf"))
        before = [0] * len(kernel)
    function = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(kernel)]
    return build.call(
        function,
        x,
        tuple(kernel),
        tuple(step.attribute("strides", [1] * len(kernel))),
        tuple(before),
        tuple(step.attribute("dilations", [1] * len(kernel))),
        bool(step.attribute("ceil_mode", 0)),
    )


@handles("GlobalAveragePool")
def global_average(build: OnnxBuilder, step: Step) -> Value:
    return build.call(global_mean, build.tensor(step[0]))


@handles("GlobalMaxPool")
def global_maximum(build: OnnxBuilder, step: Step) -> Value:
    return build.call(global_max, build.tensor(step[0]))


def global_mean(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


def global_max(x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


# -- parts ----------------------------------------------------------------------------------------


def _layer(
    build: OnnxBuilder, step: Step, kind: str, x: fx.Node, settings: Mapping[str, Any]
) -> fx.Node:
    path = build.layer_path(step, 1)
    tensors = {"weight": to_tensor(step[1])}
    if step[2] is not None:
        tensors["bias"] = to_tensor(step[2])
    return _add(build, path, LayerCall(kind, path, "", {}, settings), tensors, x)


def _add(
    build: OnnxBuilder, path: str, call: LayerCall, tensors: Mapping[str, Tensor], x: fx.Node
) -> fx.Node:
    build.tree.add_module(path, build_layer(call, tensors))
    return build.tree.call_module(path, x)


def _kernel(build: OnnxBuilder, step: Step, index: int) -> Sequence[int]:
    kernel = step.attribute("kernel_shape")
    if kernel is None:
        shape = np.shape(step[index]) or build.source.shapes.get(step.node.input[index], ())
        kernel = list(shape[2:])
    if not 1 <= len(kernel) <= 3:
        raise build.refuse(step, f"a kernel of {len(kernel)} dimensions is not read")
    return kernel  # type: ignore[no-any-return]


def _padding(build: OnnxBuilder, step: Step) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis."""
    kernel = step.attribute("kernel_shape") or np.shape(step[1])[2:]
    count = len(kernel)
    automatic = step.attribute("auto_pad", "NOTSET")
    if automatic in ("NOTSET", "VALID"):
        pads = step.attribute("pads", [0] * 2 * count) if automatic == "NOTSET" else [0] * 2 * count
        return list(pads[:count]), list(pads[count:])
    shape = build.source.shapes.get(step.node.input[0], ())[2:]
    strides = step.attribute("strides", [1] * count)
    dilations = step.attribute("dilations", [1] * count)
    before, after = [], []
    for axis in range(count):
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        size = shape[axis] if axis < len(shape) else 0
        if strides[axis] != 1 and not size:
            raise build.refuse(step, f"{automatic} needs a fixed input size")
        outside = -(-size // strides[axis]) if strides[axis] != 1 else size
        total = max((outside - 1) * strides[axis] + reach - size, 0)
        small, large = total // 2, total - total // 2
        before.append(large if automatic == "SAME_LOWER" else small)
        after.append(small if automatic == "SAME_LOWER" else large)
    return before, after


def _torch_pad(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """torch counts from the last axis backwards."""
    pairs = list(zip(before, after, strict=True))
    return [n for pair in reversed(pairs) for n in pair]


def _constant_or_none(value: Value) -> bool:
    return value is None or isinstance(value, np.ndarray)


def _is_bias(value: Value, channels: int) -> bool:
    return value is None or (
        isinstance(value, np.ndarray) and value.size in (1, channels) and value.ndim < 2
    )


def _optional(build: OnnxBuilder, value: Value) -> fx.Node | None:
    return None if value is None else build.tensor(value)
