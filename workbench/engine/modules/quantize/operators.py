"""What the accelerator's operators compute, on plain PyTorch. Chapter 25 section 9."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workbench.engine.numerics.element import ElementFormat

_EXACT = 1024
"""So many products of int8 numbers add up exactly in float32."""


_has_one_dnn: Callable[[], bool] = torch.backends.mkldnn.is_available


def quantize_codes(
    x: Tensor, scale: Tensor, offset: Tensor | None, element: ElementFormat, *, divide: bool = False
) -> Tensor:
    """Codes of ``x * scale + offset``, or of ``x / scale + offset`` (``npu_quantize``)."""
    scaled = x.float() / scale.float() if divide else x.float() * scale.float()
    if offset is not None:
        scaled += offset.float()
    return element.encode(scaled)


def quantize_tokens(x: Tensor, element: ElementFormat) -> tuple[Tensor, Tensor]:
    """Codes of ``x / s`` with a scale per row of the last axis, and s [..., 1] (float32).

    The largest magnitude of a row becomes 127 for int8 and 15 for hifloat8; a row of zeros has
    scale 1 (``npu_dynamic_quant``).
    """
    magnitude = x.detach().abs().amax(-1, keepdim=True).float()
    scale = magnitude / element.dynamic_target
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return element.encode(x.float() / scale), scale


def integer_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Exact ``x @ weight`` of int8 matrices [M, K] and [K, N]: int32, or int64 where torch has no
    kernel for the shapes.
    """
    rows, features = x.shape
    if x.device.type == "cpu":
        # Without oneDNN it is a plain loop, slower than float32 products.
        fits = rows > 0 and _has_one_dnn()
    else:
        # On accelerators the kernel takes many rows, and sides in multiples of eight.
        fits = rows > 16 and features % 8 == 0 and weight.shape[1] % 8 == 0
    if fits and hasattr(torch, "_int_mm"):
        return torch._int_mm(x, weight)
    return integer_matmul_in_chunks(x, weight)


def integer_matmul_in_chunks(x: Tensor, weight: Tensor) -> Tensor:
    """``integer_matmul`` by float32 products short enough to be exact; int64."""
    total = torch.zeros(x.shape[0], weight.shape[1], dtype=torch.int64, device=x.device)
    for start in range(0, x.shape[1], _EXACT):
        part = x[:, start : start + _EXACT].float() @ weight[start : start + _EXACT].float()
        total += part.to(torch.int64)
    return total


def integer_output(
    accumulator: Tensor, scale: Tensor, integer_bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """``(accumulator + bias) * scale`` in ``dtype``, rounded once: float64 holds the integers."""
    total = accumulator.to(torch.float64)
    if integer_bias is not None:
        total += integer_bias
    return total.mul_(scale).to(dtype)
