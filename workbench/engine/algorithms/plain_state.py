"""The state of an observer as tensors, numbers, lists and dicts: what a checkpoint may hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.engine.errors import WrongValue


def to_plain(value: Any) -> Any:
    """``value`` with its objects as dicts of their attributes, readable with weights-only loading.

    Tensors are shared, not copied.
    """
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return {name: to_plain(item) for name, item in vars(value).items()}


def from_plain(target: Any, state: Any) -> Any:
    """What ``to_plain`` made of an object like ``target``, in the types that ``target`` has.

    Objects are filled in place, so nothing is created but lists and arrays. Raises ``ValueError``
    when the state is another object's.
    """
    if isinstance(target, torch.Generator):
        target.set_state(state)
        return target
    if isinstance(target, np.ndarray):
        return state.numpy()
    if isinstance(target, list | tuple):
        if target and len(target) == len(state):
            state = [from_plain(*pair) for pair in zip(target, state, strict=True)]
        return type(target)(state)
    if not hasattr(target, "__dict__") or isinstance(target, Tensor):
        return state
    if not isinstance(state, dict) or set(state) != set(vars(target)):
        raise WrongValue(
            f"the state is not that of a {type(target).__name__}",
            hint="Load it into a model that was made with the same configuration.",
        )
    for name, value in vars(target).items():
        setattr(target, name, from_plain(value, state[name]))
    return target
