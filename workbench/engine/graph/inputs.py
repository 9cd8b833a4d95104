"""The ``input_data`` argument of the public functions (chapter 10 section 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from workbench.engine.errors import WrongState, WrongType
from workbench.engine.graph.copying import CAST_DTYPES


def split_inputs(input_data: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split example inputs into positional and keyword arguments.

    A tensor is a 1-tuple; a dict at the end of a tuple holds keyword arguments. A list raises
    ``WrongState``, anything else ``WrongType``.
    """
    if isinstance(input_data, Tensor):
        return (input_data,), {}
    if isinstance(input_data, list):
        raise WrongState(
            "is a list; allowed: a tuple of the model's positional inputs, or one tensor.",
            where="input_data",
            hint="Write tuple(input_data).",
        )
    if not isinstance(input_data, tuple):
        raise WrongType(
            f"is {type(input_data).__name__}; allowed: a tuple of the model's positional inputs, "
            "or one tensor.",
            where="input_data",
        )
    if input_data and isinstance(input_data[-1], dict):
        keywords = input_data[-1]
        wrong = [k for k in keywords if not isinstance(k, str)]
        if wrong:
            raise WrongType(
                f"the keyword arguments at the end have keys that are not text: {wrong!r}.",
                where="input_data",
            )
        return tuple(input_data[:-1]), dict(keywords)
    return tuple(input_data), {}


def batch_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Dimension 0 of the first tensor that has one; 0 when there is none."""
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            return int(leaf.shape[0])
    return 0


def batched(leaf: object, batch: int) -> bool:
    """Whether a leaf of the inputs carries the batch dimension."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch


def own_tensors(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same inputs as new tensor objects over the same memory."""
    renew = lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf
    renewed: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(renew, (args, kwargs))
    return renewed


def inputs_to_float32(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Cast float64 and bfloat16 inputs to float32, as the copy of such a model is."""
    cast = lambda leaf: (
        leaf.to(torch.float32) if isinstance(leaf, Tensor) and leaf.dtype in CAST_DTYPES else leaf
    )
    result: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(cast, (args, kwargs))
    return result


def to_float32_hook(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A forward pre-hook: a copy that was cast to float32 still takes its model's own batches."""
    return inputs_to_float32(args, kwargs)
