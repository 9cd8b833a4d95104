"""Fake quantisation in a form that both ONNX exporters of torch write as Q/DQ pairs.

Source: specification chapter 30 section 9.4, S5 and S6. These functions are for a model that is
being exported; they know no gradient and read no values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.engine.errors import WrongState
from workbench.engine.numerics.integer import int_range

INT16_OPSET = 21
"""The first operator set whose QuantizeLinear has 16-bit integers."""


def is_exporting() -> bool:
    """Whether the running forward is recorded instead of computed."""
    return torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None


def activation_nodes(x: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
    """``x`` through a Q/DQ pair; one scale, one integer offset, 8 or 16 bits.

    ``RuntimeError`` for 16 bits outside ``torch.onnx.export(..., dynamo=True)``: only that one
    writes the operator set they need.
    """
    scale, offset = scale.reshape(()), offset.reshape(())
    if bits == 8:
        return torch.fake_quantize_per_tensor_affine(
            x, scale, offset.to(torch.int32), *int_range(bits)
        )
    if not torch.compiler.is_exporting():
        raise WrongState(
            f"{bits}-bit activations need opset {INT16_OPSET}, which this exporter does not write",
            hint=f"Call torch.onnx.export(..., dynamo=True, opset_version={INT16_OPSET}).",
        )
    codes = torch.onnx.ops.symbolic(
        "QuantizeLinear",
        [x, scale, offset],
        {},
        dtype=offset.dtype,
        shape=x.shape,
        version=INT16_OPSET,
    )
    return torch.onnx.ops.symbolic(
        "DequantizeLinear",
        [codes, scale, offset],
        {},
        dtype=x.dtype,
        shape=x.shape,
        version=INT16_OPSET,
    )


def weight_nodes(
    weight: Tensor, scales: Tensor, bits: int, *, channel_axis: int | None, groups: int
) -> Tensor:
    """A weight through a Q/DQ pair with offset 0; ``scales``: ``(Cout,)``, or ``(1,)`` for
    ``channel_axis`` None.

    A transposed convolution in groups has its output channels on two axes: it is reshaped around
    the pair to one axis of ``Cout`` (S5).
    """
    low, high = int_range(bits)
    if channel_axis is None:
        zero = torch.zeros((), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_tensor_affine(weight, scales.reshape(()), zero, low, high)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    if channel_axis != 1 or groups == 1:
        return torch.fake_quantize_per_channel_affine(
            weight, scales, zeros, channel_axis, low, high
        )
    rows, columns, *kernel = weight.shape
    merged = weight.reshape(groups, rows // groups, columns, *kernel).transpose(1, 2)
    merged = merged.reshape(groups * columns, rows // groups, *kernel)
    merged = torch.fake_quantize_per_channel_affine(merged, scales, zeros, 0, low, high)
    parted = merged.reshape(groups, columns, rows // groups, *kernel).transpose(1, 2)
    return parted.reshape(weight.shape)
