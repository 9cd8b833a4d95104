"""Which convolutions of a model are decomposed, and why the others are not.

Source: specification chapter 60 sections 2 and 10 (D1, D4 to D6, D8).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from workbench.engine.errors import WrongValue
from workbench.engine.files.decompose_info import DecomposedConv
from workbench.engine.graph.kernel_split import KernelSplit

_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Pair = tuple[int, int]


@dataclass(frozen=True)
class Candidate:
    """A ``Conv2d`` of the model under its first name. ``skipped``: why it stays, or empty.

    ``unusual``: the reason is one the user would not expect, so it is worth a warning.
    """

    name: str
    layer: nn.Conv2d
    skipped: str = ""
    unusual: bool = False

    @property
    def label(self) -> str:
        """The name in a message; the model itself has an empty one."""
        return self.name or type(self.layer).__name__

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    @property
    def split(self) -> KernelSplit:
        return split_of(self.layer)


def split_of(layer: nn.Conv2d) -> KernelSplit:
    height, width = layer.kernel_size
    return KernelSplit((layer.out_channels, layer.in_channels // layer.groups, height, width))


def describe(name: str, layer: nn.Conv2d, rank: int, error: float | None) -> DecomposedConv:
    """What the information file says of ``layer``."""
    return DecomposedConv(
        name=name,
        in_channels=layer.in_channels,
        out_channels=layer.out_channels,
        kernel_size=cast(Pair, layer.kernel_size),
        stride=cast(Pair, layer.stride),
        dilation=cast(Pair, layer.dilation),
        groups=layer.groups,
        rank=rank,
        padding=layer.padding if isinstance(layer.padding, str) else cast(Pair, layer.padding),
        has_bias=layer.bias is not None,
        relative_error=error,
    )


def filter_reason(layer: nn.Conv2d) -> str:
    """Why decomposing a convolution of this shape does not pay; empty when it may."""
    channels = min(layer.in_channels, layer.out_channels)
    kernel = min(layer.kernel_size)
    if max(layer.dilation) > 1:
        return "its dilation is above 1"
    if layer.groups > 1:
        return "it is grouped"
    if kernel < 3:
        return "a side of its kernel is below 3"
    if max(layer.stride) > 2:
        return "its stride is above 2"
    if kernel * channels < 16 or (kernel < 7 and channels < 64):
        return "it has too few channels for the size of its kernel"
    return ""


def mac_ratio(layer: nn.Conv2d, rank: int) -> float:
    """Multiply-accumulates of the pair divided by those of ``layer``, away from the borders."""
    split = split_of(layer)
    height, width = cast(Pair, layer.stride)
    outputs, inputs, *kernel = split.shape
    before = outputs * inputs * kernel[0] * kernel[1]
    return split.multiply_accumulates(rank, (height, width)) / before


def find_candidates(
    model: nn.Module, include: list[str] | None, exclude: list[str] | None
) -> list[Candidate]:
    """Every ``Conv2d`` in the order of ``named_modules()``.

    Raises ``ValueError`` for a weight with inf or NaN (all such layers in one error) and for a
    pattern of ``include`` that fits no convolution.
    """
    convolutions = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    for pattern in include or ():
        if not any(fnmatchcase(name, pattern) for name, _ in convolutions):
            raise WrongValue(
                f"include: {pattern!r} fits no Conv2d of the model.",
                where="auto_decomposition()",
                hint=f"Its Conv2d layers are {', '.join(n for n, _ in convolutions) or 'none'}.",
            )
    found = [_judge(name, layer, include, exclude) for name, layer in convolutions]
    _check_finite(found)
    return list(_without_shared(model, found))


def _judge(
    name: str, layer: nn.Conv2d, include: list[str] | None, exclude: list[str] | None
) -> Candidate:
    if unusual := _unsuitable(layer):
        return Candidate(name, layer, unusual, unusual=True)
    if include is not None and not any(fnmatchcase(name, p) for p in include):
        return Candidate(name, layer, "it is not in include")
    if any(fnmatchcase(name, pattern) for pattern in exclude or ()):
        return Candidate(name, layer, "it is in exclude")
    return Candidate(name, layer, filter_reason(layer))


def _unsuitable(layer: nn.Conv2d) -> str:
    if type(layer).forward is not nn.Conv2d.forward or (
        type(layer)._conv_forward is not nn.Conv2d._conv_forward
    ):
        return f"{type(layer).__name__} computes something else than Conv2d"
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is computed (weight_norm, parametrize); remove that first"
    if is_lazy(weight):
        return "its weight is not initialised yet; run the model once"
    if weight.dtype not in _TYPES:
        return f"its weight is {weight.dtype}"
    if weight.is_meta:
        return "its weight has no values (meta device)"
    return ""


def _check_finite(candidates: list[Candidate]) -> None:
    bad = [c.label for c in candidates if not c.unusual and not bool(c.weight.isfinite().all())]
    if bad:
        raise WrongValue(
            f"the weight holds inf or NaN (layer {', '.join(bad)})",
            where="auto_decomposition()",
            hint="Check the model's checkpoint.",
        )


def _without_shared(model: nn.Module, candidates: list[Candidate]) -> Iterator[Candidate]:
    """Keep a weight that something else uses as well: two copies would go separate ways."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    free = {c.name for c in candidates if not c.skipped}
    for candidate in candidates:
        others = [] if candidate.skipped else owners[id(candidate.weight)]
        staying = [name for name in others if name not in free]
        if staying:
            reason = f"its weight is shared with {', '.join(staying)}, which cannot be decomposed"
            yield Candidate(candidate.name, candidate.layer, reason, unusual=True)
        else:
            yield candidate
