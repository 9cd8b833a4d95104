"""ONNX forms of ATen operators where the exporter's own are wrong or needlessly long.

Each function is traced by torch's ONNX exporter in place of its translation of the operator named
in ``TRANSLATIONS``; parameters follow the ATen schema, defaults included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18

if TYPE_CHECKING:
    # onnxscript's tensor types describe values of its own interpreter, not what a trace passes.
    FLOAT: TypeAlias = Any
else:
    from onnxscript import FLOAT

op: Any = opset18
_aten = torch.ops.aten


def conv2d(
    input: FLOAT,
    weight: FLOAT,
    bias: FLOAT | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> FLOAT:
    """A Conv without a bias has no bias input (the exporter builds one of zeros)."""
    return _conv(op.Conv, input, weight, bias, stride, padding, dilation, group=groups)


def conv_transpose2d(
    input: FLOAT,
    weight: FLOAT,
    bias: FLOAT | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    output_padding: Sequence[int] = (0, 0),
    groups: int = 1,
    dilation: Sequence[int] = (1, 1),
) -> FLOAT:
    """As ``conv2d``, for ConvTranspose; the weight stays (Cin, Cout/groups, kh, kw)."""
    extra = {"group": groups, "output_padding": _per_axis(output_padding, len(weight.shape) - 2)}
    return _conv(op.ConvTranspose, input, weight, bias, stride, padding, dilation, **extra)


def conv2d_padding(
    input: FLOAT,
    weight: FLOAT,
    bias: FLOAT | None = None,
    stride: Sequence[int] = (1, 1),
    padding: str = "valid",
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> FLOAT:
    """padding='same' as explicit pads; an odd total puts the extra row or column at the end."""
    axes = len(weight.shape) - 2
    dilations = _per_axis(dilation, axes)
    total = [
        d * (int(k) - 1) if padding == "same" else 0
        for d, k in zip(dilations, weight.shape[2:], strict=True)
    ]
    before = [t // 2 for t in total]
    pads = before + [t - b for t, b in zip(total, before, strict=True)]
    return _conv(op.Conv, input, weight, bias, stride, pads, dilation, group=groups)


def linear(input: FLOAT, weight: FLOAT, bias: FLOAT | None = None) -> FLOAT:
    """Gemm for a 2-D input, else MatMul of the transposed weight and Add with the bias second."""
    if len(input.shape) == 2:
        inputs = [input, weight] if bias is None else [input, weight, bias]
        return op.Gemm(*inputs, transB=1)
    product = op.MatMul(input, op.Transpose(weight, perm=[1, 0]))
    return product if bias is None else op.Add(product, bias)


def batch_norm(
    input: FLOAT,
    weight: FLOAT | None,
    bias: FLOAT | None,
    running_mean: FLOAT | None,
    running_var: FLOAT | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> FLOAT:
    """BatchNormalization of the running statistics, or of the batch's own where a module asks."""
    del momentum, cudnn_enabled
    channels = int(input.shape[1])
    scale = _filled(1.0, channels, input) if weight is None else weight
    shift = _filled(0.0, channels, input) if bias is None else bias
    if not training and running_mean is not None and running_var is not None:
        return op.BatchNormalization(input, scale, shift, running_mean, running_var, epsilon=eps)
    rank = len(input.shape)
    axes = op.Constant(value_ints=[axis for axis in range(rank) if axis != 1])
    along = op.Constant(value_ints=[1, channels] + [1] * (rank - 2))
    centred = op.Sub(input, op.ReduceMean(input, axes, keepdims=1))
    variance = op.ReduceMean(op.Mul(centred, centred), axes, keepdims=1)
    spread = op.Sqrt(op.Add(variance, op.CastLike(op.Constant(value_float=eps), input)))
    normal = op.Div(centred, spread)
    return op.Add(op.Mul(normal, op.Reshape(scale, along)), op.Reshape(shift, along))


def avg_pool2d(
    self: FLOAT,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> FLOAT:
    """AveragePool; a custom divisor becomes a mean over full windows and a Mul.

    PyTorch drops a last window that would start in the padding, ONNX does not: where the two
    differ, pads are written out, and padding that counts becomes a Pad node.
    """
    batched = self if len(self.shape) == 4 else op.Unsqueeze(self, op.Constant(value_ints=[0]))
    kernel = _per_axis(kernel_size, 2)
    strides = _per_axis(stride, 2) if len(_listed(stride)) else kernel
    pads = _per_axis(padding, 2)
    sizes = [int(size) for size in self.shape[-2:]]
    windows = list(zip(sizes, kernel, strides, pads, strict=True))
    over = [_overhang(*window) if ceil_mode else 0 for window in windows]
    agrees = not ceil_mode or all(
        (out > 0) == bool((size + 2 * pad - k) % step)
        for out, (size, k, step, pad) in zip(over, windows, strict=True)
    )
    end = [pad + out for pad, out in zip(pads, over, strict=True)]
    if divisor_override is not None:
        mean = op.AveragePool(_padded(batched, pads, end), kernel_shape=kernel, strides=strides)
        ratio = op.Constant(value_float=prod(kernel) / divisor_override)
        result = op.Mul(mean, op.CastLike(ratio, mean))
    elif agrees:
        result = op.AveragePool(
            batched,
            kernel_shape=kernel,
            strides=strides,
            pads=pads * 2,
            ceil_mode=int(ceil_mode),
            count_include_pad=int(count_include_pad),
        )
    else:
        if count_include_pad:
            batched, pads, end = _padded(batched, pads, pads), [0, 0], over
        result = op.AveragePool(batched, kernel_shape=kernel, strides=strides, pads=pads + end)
    return result if len(self.shape) == 4 else op.Squeeze(result, op.Constant(value_ints=[0]))


def adaptive_avg_pool2d(self: FLOAT, output_size: Sequence[int]) -> FLOAT:
    """GlobalAveragePool, AveragePool of equal windows, else MatMuls with the windows' means."""
    sizes = [int(size) for size in output_size]
    axes = len(sizes)
    batched = len(self.shape) == axes + 2
    value = self if batched else op.Unsqueeze(self, op.Constant(value_ints=[0]))
    if all(size == 1 for size in sizes):
        result = op.GlobalAveragePool(value)
    else:
        given = [int(size) for size in self.shape[-axes:]]
        if all(have % want == 0 for have, want in zip(given, sizes, strict=True)):
            kernel = [have // want for have, want in zip(given, sizes, strict=True)]
            result = op.AveragePool(value, kernel_shape=kernel, strides=kernel)
        elif axes == 2:
            rows, columns = (_window_means(h, w) for h, w in zip(given, sizes, strict=True))
            across = op.MatMul(value, op.CastLike(_constant(columns.T), value))
            result = op.MatMul(op.CastLike(_constant(rows), value), across)
        else:
            means = _constant(_window_means(given[0], sizes[0]).T)
            result = op.MatMul(value, op.CastLike(means, value))
    return result if batched else op.Squeeze(result, op.Constant(value_ints=[0]))


def adaptive_avg_pool1d(self: FLOAT, output_size: Sequence[int]) -> FLOAT:
    """The one-dimensional form of ``adaptive_avg_pool2d``."""
    return adaptive_avg_pool2d(self, output_size)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    _aten.conv1d.default: conv2d,
    _aten.conv2d.default: conv2d,
    _aten.conv3d.default: conv2d,
    _aten.conv1d.padding: conv2d_padding,
    _aten.conv2d.padding: conv2d_padding,
    _aten.conv3d.padding: conv2d_padding,
    _aten.conv_transpose1d.default: conv_transpose2d,
    _aten.conv_transpose2d.input: conv_transpose2d,
    _aten.conv_transpose3d.input: conv_transpose2d,
    _aten.linear.default: linear,
    _aten.batch_norm.default: batch_norm,
    _aten.avg_pool2d.default: avg_pool2d,
    _aten.adaptive_avg_pool1d.default: adaptive_avg_pool1d,
    _aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d,
}
"""ATen operator -> its translation, for ``torch.onnx.export(custom_translation_table=…)``."""


def _conv(
    operator: Callable[..., Any],
    input: FLOAT,
    weight: FLOAT,
    bias: FLOAT | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    **extra: Any,
) -> FLOAT:
    axes = len(weight.shape) - 2
    batched = len(input.shape) == axes + 2
    value = input if batched else op.Unsqueeze(input, op.Constant(value_ints=[0]))
    pads = list(_listed(padding))
    if len(pads) != 2 * axes:
        pads = _per_axis(pads, axes) * 2
    inputs = [value, weight] if bias is None else [value, weight, bias]
    result = operator(
        *inputs,
        kernel_shape=[int(size) for size in weight.shape[2:]],
        strides=_per_axis(stride, axes),
        pads=pads,
        dilations=_per_axis(dilation, axes),
        **extra,
    )
    return result if batched else op.Squeeze(result, op.Constant(value_ints=[0]))


def _listed(value: int | Sequence[int]) -> list[int]:
    return [int(value)] if isinstance(value, int) else [int(size) for size in value]


def _per_axis(value: int | Sequence[int], axes: int) -> list[int]:
    sizes = _listed(value)
    # Defaults are written for two axes, and some calls give one size for all.
    return sizes if len(sizes) == axes else sizes[:1] * axes


def _overhang(size: int, kernel: int, stride: int, pad: int) -> int:
    """How far PyTorch's last ceil_mode window reaches beyond the padded input."""
    steps = -(-(size + 2 * pad - kernel) // stride)
    if steps * stride >= size + pad:
        steps -= 1
    return max(0, steps * stride + kernel - size - 2 * pad)


def _padded(value: FLOAT, begin: Sequence[int], end: Sequence[int]) -> FLOAT:
    if not any(begin) and not any(end):
        return value
    return op.Pad(value, op.Constant(value_ints=[0, 0, *begin, 0, 0, *end]))


def _filled(value: float, count: int, like: FLOAT) -> FLOAT:
    return op.CastLike(op.Constant(value_floats=[value] * count), like)


def _constant(array: np.ndarray[Any, np.dtype[np.float32]]) -> FLOAT:
    return op.Constant(value=ir.tensor(array))


def _window_means(given: int, wanted: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The (wanted, given) matrix whose rows average PyTorch's adaptive windows."""
    matrix = np.zeros((wanted, given), np.float32)
    for row in range(wanted):
        start, stop = row * given // wanted, -(-(row + 1) * given // wanted)
        matrix[row, start:stop] = 1 / (stop - start)
    return matrix
