"""What all deploy modules share: small codes as buffers, in their own types whatever happens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.errors import WrongState
from workbench.engine.modules.quantize.base import CalibrationModule, named

logger = logging.getLogger("workbench.engine.modules.quantize")

_INTEGER_OF_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_COARSE = 0.01
"""A scale may lose so much to the layer's own float type; tiny ones lose everything."""


class DeployModule(nn.Module):
    """Base: codes and factors are buffers; ``.to(dtype)`` and ``.half()`` leave their types alone.

    Answers come in the dtype of the input. ``layer_name`` is what errors call the layer.
    """

    workbench_wrapper = True  # no model to start a flow from

    def __init__(self, layer_name: str, what: str) -> None:
        super().__init__()
        self.layer_name = layer_name
        self.what = what

    def extra_repr(self) -> str:
        return self.what

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DeployModule:
        floats = {
            name: value
            for name, value in self._buffers.items()
            if value is not None and value.is_floating_point()
        }
        # As integers they move and keep their bits.
        for name, value in floats.items():
            self._buffers[name] = value.view(_INTEGER_OF_WIDTH[value.dtype.itemsize])
        apply: Callable[..., object] = super()._apply
        apply(fn, recurse)
        for name, value in floats.items():
            moved = self._buffers[name]
            assert moved is not None
            self._buffers[name] = moved.view(value.dtype)
        return self


class DeployLinear(DeployModule):
    """A Linear on small codes, for inputs of any number of axes."""

    def __init__(self, layer_name: str, weight: Tensor, what: str) -> None:
        super().__init__(layer_name, what)
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        """The layer's answer; ``ValueError`` naming the layer when NaN meets integers."""
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise WrongState(
                f"an input has shape {list(x.shape)}; allowed: (..., {self.in_features})",
                where=f"layer {self.layer_name}",
            )
        with named(self.layer_name):
            y = self.compute(x.reshape(-1, self.in_features))
        return y.reshape(*x.shape[:-1], self.out_features)

    def compute(self, x: Tensor) -> Tensor:
        """The answer for a matrix of inputs [M, K], [M, N] in its dtype."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.what}"


def describe(module: CalibrationModule) -> str:
    """Formats in words, for ``repr``."""
    weights = f"weights={module.weight_format.type} per {module.weight_format.strategy}"
    if module.group_size is not None:
        weights += f" of {module.group_size}"
    if module.inputs is None:
        return weights
    return f"inputs={module.inputs.type} per {module.inputs.strategy}, {weights}"


def in_layer_dtype(scale: Tensor, module: CalibrationModule) -> Tensor:
    """A factor in the weight's float type, as the reference keeps it, or in ``scale_dtype``.

    Stays float32 where the narrow type cannot hold it (float16 ends at 6e-8).
    """
    dtype = module.scale_dtype or module.weight.dtype
    cast = scale.to(dtype)
    difference = (cast.float() - scale.float()).abs()
    if bool((difference <= _COARSE * scale.float().abs()).all()):
        return cast
    logger.warning(
        "layer %s: %s cannot hold its scales; they stay float32",
        module.layer_name,
        str(dtype).removeprefix("torch."),
    )
    return scale.float()


def buffer(module: nn.Module, name: str, value: Any) -> None:
    """Register a detached buffer of its own memory; None stays None."""
    kept = value.detach().clone() if isinstance(value, Tensor) else None
    module.register_buffer(name, kept)
