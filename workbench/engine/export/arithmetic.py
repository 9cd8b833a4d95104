"""The integer arithmetic that every exported file and the torch module share.

Source: chapter 10 sections 2, 13.2, 13.3 and decision D25. Everything here is NumPy on one layer's
arrays, so that a file written in one process and a module evaluated in another agree to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.engine.errors import WrongState
from workbench.engine.numerics.half import truncate_dequant
from workbench.engine.numerics.integer import int_range

FloatArray = NDArray[np.float32]

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def dequant_scale(scale_d: float, scale_w: FloatArray, *, force_fp16: bool = False) -> FloatArray:
    """``scale_d * scale_w`` in float32, one value per output channel.

    With ``force_fp16`` (FORCE_FP16_QUANT) it is truncated to ten mantissa bits.
    """
    deq = (np.float32(scale_d) * np.asarray(scale_w, np.float32)).astype(np.float32)
    return truncate_dequant(deq) if force_fp16 else deq


def pack_dequant_parameter(deq: FloatArray) -> NDArray[np.uint64]:
    """The words of ``AscendDequant``: float bits below, the weight offset (always 0) above."""
    return deq.astype(np.float32).view(np.uint32).astype(np.uint64)


def unpack_dequant_parameter(words: NDArray[np.uint64]) -> FloatArray:
    """The float32 dequantisation scales held by ``pack_dequant_parameter``'s words."""
    low = (words & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    return low.view(np.float32)


def broadcast_scale(
    scale: FloatArray, shape: tuple[int, ...], axis: int, groups: int
) -> FloatArray:
    """Scales of one weight, shaped to divide it.

    ``axis`` is the stored axis of the output channels. With ``groups`` > 1 and axis 1 (a grouped
    transposed convolution, stored ``(Cin, Cout/g, k...)``) the scales repeat along the input axis.
    """
    if scale.size == 1:
        return scale.reshape((1,) * len(shape))
    if groups > 1 and axis == 1:
        rows = np.repeat(scale.reshape(groups, -1), shape[0] // groups, axis=0)
        return rows.reshape(rows.shape + (1,) * (len(shape) - 2))
    return scale.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def weight_codes(
    weight: NDArray[Any], scale_w: FloatArray, bits: int, *, axis: int, groups: int = 1
) -> FloatArray:
    """``clip(RNE(w / scale_w), qmin, qmax)`` as float32 integers, in the weight's own layout."""
    low, high = int_range(bits)
    stored = np.asarray(weight, np.float32)
    scale = broadcast_scale(np.asarray(scale_w, np.float32), stored.shape, axis, groups)
    codes: FloatArray = stored / scale
    np.rint(codes, out=codes)
    return np.clip(codes, low, high, out=codes)


def bias_codes(
    bias: NDArray[Any], scale_d: float, scale_w: FloatArray, *, layer: str
) -> NDArray[np.int32]:
    """``RNE(bias / (scale_d * scale_w))`` as int32, divided and compared in float64.

    Raises ``RuntimeError`` naming layer, channel, value and both scales when a code does not fit
    (nothing saturates).
    """
    deq = dequant_scale(scale_d, scale_w).astype(np.float64)
    values = np.asarray(bias, np.float64).reshape(-1)
    codes = np.rint(values / deq)
    bad = np.flatnonzero(~((codes >= INT32_MIN) & (codes <= INT32_MAX)))
    if bad.size:
        channel = int(bad[0])
        w = float(np.asarray(scale_w).reshape(-1)[channel if np.size(scale_w) > 1 else 0])
        raise WrongState(
            f"the bias of channel {channel} is {values[channel]:.9g}; with scale_d {scale_d:.9g} "
            f"and scale_w {w:.9g} its code {codes[channel]:.6g} does not fit in int32 "
            f"({bad.size} channel(s) in all).",
            where=f"layer {layer}",
            hint="Add this layer to skip_layers.",
        )
    return codes.astype(np.int32)


def pack_int4(codes: NDArray[np.int8], axis: int) -> NDArray[np.int8]:
    """Two 4-bit codes per byte along ``axis``: even index in the low nibble, odd in the high."""
    even = np.take(codes, range(0, codes.shape[axis], 2), axis=axis).view(np.uint8)
    odd = np.take(codes, range(1, codes.shape[axis], 2), axis=axis).view(np.uint8)
    return ((even & 0x0F) | (odd << 4)).astype(np.uint8).view(np.int8)


def unpack_int4(packed: NDArray[np.int8], axis: int) -> NDArray[np.int8]:
    """Inverse of ``pack_int4``."""
    raw = np.ascontiguousarray(packed).view(np.uint8)
    low = (raw << 4).astype(np.uint8).view(np.int8) >> 4
    high = raw.view(np.int8) >> 4
    both = np.stack([low, high], axis=axis + 1)
    shape = list(packed.shape)
    shape[axis] *= 2
    return np.ascontiguousarray(both.reshape(shape).astype(np.int8))
