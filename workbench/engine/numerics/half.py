"""What ``FORCE_FP16_QUANT`` does to scales: precision of float16, range of float32."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_SMALLEST_NORMAL = 2.0**-14
_LARGEST = 65504.0
_KEEP_TEN_BITS = np.uint32(0xFFFFE000)


def to_half_precision(scale: float) -> float:
    """A scale rounded to the precision of float16, kept as float32.

    Scales outside the normal range of float16 are rounded through their square root:
    ``fp16(sqrt(s))^2``. Chapter 10 section 11.
    """
    value = np.float32(scale)
    if _SMALLEST_NORMAL <= value <= _LARGEST:
        return float(np.float16(value))
    root = np.float32(np.float16(np.sqrt(value)))
    return float(root * root)


def truncate_dequant(deq: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Dequantisation factors cut (not rounded) to 10 mantissa bits. Chapter 10 section 13.3."""
    bits = np.ascontiguousarray(deq, dtype=np.float32).view(np.uint32)
    return (bits & _KEEP_TEN_BITS).view(np.float32).reshape(np.shape(deq))
