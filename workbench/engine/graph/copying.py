"""The engine's own copy of a user's model (index decision 11)."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from workbench.engine.errors import WrongState

CAST_DTYPES = (torch.float64, torch.bfloat16)
"""Floating types that a copy holds as float32 instead (chapter 10, D23)."""


def copy_model(model: nn.Module) -> nn.Module:
    """Copy the module tree: parameters are shared, buffers cloned, the copy is in eval mode.

    The caller must replace shared parameters, never write them. Hooks travel with the copy, because
    some (weight normalisation) are part of the computation. The user's model stays as it is.
    Raises ``WrongState`` when some part refuses to be copied: the engine never falls back to
    changing the user's model (chapter 10, D19).
    """
    return _duplicate(model, {id(p): p for p in model.parameters()}).eval()


def copy_for_training(model: nn.Module) -> nn.Module:
    """Copy the module tree with all its tensors; each module keeps its mode.

    Raises ``WrongState`` like ``copy_model``.
    """
    return _duplicate(model, {})


def _duplicate(model: nn.Module, memo: dict[int, object]) -> nn.Module:
    for module in model.modules():
        for value in vars(module).values():
            # The last weight a weight_norm layer computed: deepcopy refuses what carries a graph.
            if isinstance(value, FakeTensor):
                # What a forward that keeps things in self left there while it was exported.
                memo[id(value)] = value
            elif isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise WrongState(
            f"the model cannot be copied: {type(error).__name__}: {error}.",
            where=_uncopyable(model) or type(model).__name__,
            hint="Give it attributes that copy.deepcopy accepts (no open files, locks or tensors "
            "that carry a gradient graph), or define __deepcopy__.",
        ) from error


def cast_to_float32(module: nn.Module) -> tuple[str, ...]:
    """Replace float64 and bfloat16 parameters and buffers of an engine copy by float32 ones.

    Ties between parameters stay ties. Returns the paths of what was cast.
    """
    done: list[str] = []
    replaced: dict[int, nn.Parameter] = {}
    for path, owner in module.named_modules():
        prefix = f"{path}." if path else ""
        for name, parameter in list(owner._parameters.items()):
            if parameter is None or parameter.dtype not in CAST_DTYPES:
                continue
            if id(parameter) not in replaced:
                value = parameter.detach().to(torch.float32)
                replaced[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
            setattr(owner, name, replaced[id(parameter)])
            done.append(prefix + name)
        for name, buffer in list(owner._buffers.items()):
            if buffer is not None and buffer.dtype in CAST_DTYPES:
                owner._buffers[name] = buffer.to(torch.float32)
                done.append(prefix + name)
    return tuple(done)


def _uncopyable(model: nn.Module) -> str:
    """The deepest module with an attribute that cannot be copied, for the message."""
    for path, owner in reversed(list(model.named_modules())):
        for name, value in vars(owner).items():
            if name in ("_modules", "_parameters"):
                continue
            try:
                copy.deepcopy(value, {id(p): p for p in model.parameters()})
            except Exception:
                return f"{path}.{name}" if path else name
    return ""
