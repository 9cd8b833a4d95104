"""What a number format offers: codes, values and rounding, for single numbers and for blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from workbench.engine.errors import WrongType, WrongValue

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class ElementFormat(Protocol):
    """A format in which each number has a code of its own (a scale is the caller's affair)."""

    @property
    def name(self) -> str:
        """As in a configuration: ``"float8_e4m3fn"``."""
        ...

    @property
    def bits(self) -> int:
        """Bits that a code needs."""
        ...

    @property
    def storage(self) -> torch.dtype:
        """Type of unpacked codes."""
        ...

    @property
    def largest(self) -> float:
        """Largest positive value."""
        ...

    @property
    def scale_target(self) -> float:
        """What the largest magnitude is scaled to when a scale is calibrated."""
        ...

    @property
    def dynamic_target(self) -> float:
        """What the largest magnitude is scaled to when the scale is found at run time."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """Codes of ``x``, of its shape; out of range saturates."""
        ...

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values of ``codes`` in ``dtype``."""
        ...

    def round(self, x: Tensor) -> Tensor:
        """``x`` moved to the format's values, in its own dtype; NaN stays NaN."""
        ...


@dataclass(frozen=True)
class Blocks:
    """A tensor in a block format: a code per element and a scale per block.

    ``codes`` has the tensor's shape. ``scales`` has it too, with one entry per block along
    ``axis`` (and one more axis at the end where a block has several scale bytes).
    """

    codes: Tensor
    scales: Tensor
    axis: int = -1


class BlockFormat(Protocol):
    """A format in which neighbours along an axis share a scale."""

    @property
    def name(self) -> str:
        """As in a configuration: ``"mxfp4_e2m1"``."""
        ...

    @property
    def bits(self) -> float:
        """Bits per element, its share of the block's scale included."""
        ...

    @property
    def block(self) -> int:
        """Elements that share a scale."""
        ...

    def encode(self, x: Tensor, axis: int = -1) -> Blocks:
        """Codes and scales of ``x`` in blocks along ``axis``."""
        ...

    def decode(self, blocks: Blocks, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values of ``blocks`` in ``dtype``."""
        ...

    def round(self, x: Tensor, axis: int = -1) -> Tensor:
        """``decode(encode(x))`` in the dtype of ``x``."""
        ...


def exact_float32(x: Tensor) -> Tensor:
    """``x`` detached, in float32, which holds float16 and bfloat16 exactly.

    Raises ``TypeError`` for other dtypes: float64 would be rounded twice.
    """
    if x.dtype not in FLOATS:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise WrongType(
            f"a tensor of dtype {x.dtype} has no codes; allowed: {allowed}",
            hint="Convert it with .float() first.",
        )
    return x.detach().to(torch.float32)


def check_codes(codes: Tensor, storage: torch.dtype, name: str) -> None:
    """``TypeError`` unless ``codes`` have the format's storage type."""
    if codes.dtype != storage:
        raise WrongType(f"codes of {name} have dtype {storage}, not {codes.dtype}")


def refuse_nan(x: Tensor, name: str) -> None:
    """``ValueError`` when ``x`` holds NaN: the format has no code for it."""
    if torch.compiler.is_exporting():
        return  # a graph cannot depend on what a tensor holds
    # NaN wins a maximum, which is many times faster than looking at each number.
    if x.numel() and bool(x.amax().isnan()):
        raise WrongValue(
            f"{name} has no code for NaN, and {int(x.isnan().sum())} of {x.numel()} values are NaN",
            hint="Look for the layer that makes them; round() lets NaN through.",
        )


def into_blocks(x: Tensor, axis: int, block: int) -> Tensor:
    """``x`` as [..., blocks, block] with ``axis`` last, the tail filled with zeros.

    ``from_blocks`` takes it back.
    """
    if not -x.dim() <= axis < x.dim():
        raise WrongValue(f"axis {axis} does not exist in a tensor of {x.dim()} axes")
    last = x.movedim(axis, -1)
    tail = -last.shape[-1] % block
    if tail:
        last = functional.pad(last, (0, tail))
    return last.reshape(*last.shape[:-1], last.shape[-1] // block, block)


def from_blocks(blocks: Tensor, axis: int, length: int) -> Tensor:
    """[..., blocks, block] back to ``length`` elements along ``axis``, contiguous."""
    return blocks.flatten(-2)[..., :length].movedim(-1, axis).contiguous()


def saturate(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 ``values`` in ``dtype``, clipped to its finite range; NaN stays NaN."""
    limit = torch.finfo(dtype).max
    return values.clamp(-limit, limit).to(dtype)
