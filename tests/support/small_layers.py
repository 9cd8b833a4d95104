"""Configurations of ``quantize`` and single layers to try them on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from workbench.engine import quantize


def weights(type_: str = "int8", strategy: str = "channel", **others: Any) -> dict[str, Any]:
    """The section ``weights``; groups have 32 elements."""
    group = {"group_size": 32} if strategy == "group" else {}
    return {"type": type_, "symmetric": True, "strategy": strategy, **group, **others}


def inputs(type_: str = "int8", strategy: str = "tensor", **others: Any) -> dict[str, Any]:
    """The section ``inputs``."""
    return {"type": type_, "symmetric": True, "strategy": strategy, **others}


def config(
    algorithm: Any, weights: dict[str, Any], inputs: dict[str, Any] | None = None, **others: Any
) -> dict[str, Any]:
    """A whole configuration."""
    quant_cfg = {"weights": weights} | ({} if inputs is None else {"inputs": inputs})
    return {"quant_cfg": quant_cfg, "algorithm": algorithm, **others}


def calibrating(layer: nn.Module, given: dict[str, Any], **options: Any) -> nn.Sequential:
    """A model of this one layer, quantised; ``[0]`` is what took its place."""
    model = nn.Sequential(layer)
    quantize(model, given, any_dtype=True, **options)
    assert model[0] is not layer
    return model


def tokens(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Gaussian inputs."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
