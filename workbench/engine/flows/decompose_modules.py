"""The two convolutions that take a convolution's place, and putting them there."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from workbench.engine.files.decompose_info import DecomposedConv
from workbench.engine.flows.qat_insert import replace_modules

logger = logging.getLogger("workbench.engine.flows")

Kernels = tuple[Tensor, Tensor]


class PairBuilder:
    """Builds pairs; parameters that convolutions share are shared by their pairs.

    Device, memory format, ``requires_grad`` and training mode follow the convolution; the first
    layer has no bias and the last one the convolution's. Source: chapter 60 sections 3 and 6.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[int, str], nn.Parameter] = {}

    def build(
        self, layer: nn.Conv2d, info: DecomposedConv, kernels: Kernels | None
    ) -> nn.Sequential:
        """The pair with ``kernels``; without, with ``Conv2d``'s own random start, bias included."""
        split = info.split
        vertical, horizontal = (_along(layer, axis) for axis in (0, 1))
        first_way, last_way = (
            (vertical, horizontal) if split.first_is_vertical else (horizontal, vertical)
        )
        weight, bias = layer.weight, layer.bias
        # With kernels nothing is drawn: the caller's random state stays.
        device = torch.device("meta") if kernels is not None else weight.device

        def make(shape: tuple[int, ...], way: _Way, has_bias: bool) -> nn.Conv2d:
            return nn.Conv2d(
                shape[1],
                shape[0],
                cast(tuple[int, int], shape[2:]),
                stride=way.stride,
                padding=way.padding,
                dilation=way.dilation,
                bias=has_bias,
                padding_mode=layer.padding_mode,
                device=device,
                dtype=weight.dtype,
            )

        first = make(split.first_shape(info.rank), first_way, False)
        last = make(split.last_shape(info.rank), last_way, bias is not None)
        values = kernels or (first.weight.detach(), last.weight.detach())
        first.weight = self._parameter(weight, "first", values[0])
        last.weight = self._parameter(weight, "last", values[1])
        if bias is not None:
            started = last.bias if kernels is None else bias.clone()
            assert started is not None
            last.bias = self._parameter(bias, "bias", started.detach())
        return nn.Sequential(first, last).train(layer.training)

    def _parameter(self, original: Tensor, role: str, values: Tensor) -> nn.Parameter:
        key = (id(original), role)
        if key not in self._made:
            values = values.to(original.device)
            if values.dim() == 4:
                values = values.contiguous(memory_format=_memory_format(original))
            self._made[key] = nn.Parameter(values, original.requires_grad)
        return self._made[key]


@dataclass(frozen=True)
class _Way:
    """Stride, padding and dilation along one axis, neutral along the other."""

    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]


def _along(layer: nn.Conv2d, axis: int) -> _Way:
    def only(values: tuple[int, ...], neutral: int) -> tuple[int, int]:
        return (values[0], neutral) if axis == 0 else (neutral, values[1])

    # 'same' and 'valid' act on each axis by its own kernel, so both layers keep the word.
    padding = layer.padding if isinstance(layer.padding, str) else only(layer.padding, 0)
    return _Way(only(layer.stride, 1), padding, only(layer.dilation, 1))


def _memory_format(weight: Tensor) -> torch.memory_format:
    last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def put_in_place(
    model: nn.Module, pairs: Mapping[nn.Conv2d, nn.Sequential]
) -> tuple[nn.Module, dict[str, list[str]]]:
    """Put each pair in its convolution's place, under every name the convolution has.

    Returns the model (the pair itself when the model is a bare convolution) and what became of the
    first name of each: ``{"a.conv": ["a.conv.0", "a.conv.1"]}``.
    """
    changes: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module in pairs:
            prefix = f"{name}." if name else ""
            changes[name] = [f"{prefix}0", f"{prefix}1"]
            _warn_of_hooks(name, module)
    replace_modules(model, {id(layer): pair for layer, pair in pairs.items()})
    if isinstance(model, nn.Conv2d) and model in pairs:
        return pairs[model], changes
    return model, changes


def _warn_of_hooks(name: str, module: nn.Module) -> None:
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        logger.warning("layer %s had hooks; the layers in its place have none", name)
