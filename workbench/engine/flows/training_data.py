"""What a training reads and keeps: batches on the right device, copies of a state."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.errors import WrongType
from workbench.engine.flows.training_random import (
    generator_states,
    set_generator_states,
    untouched,
)


def device_of(model: nn.Module) -> torch.device:
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def epoch_length(loader: Iterable[Any], device: torch.device) -> int:
    """Batches of an epoch; a loader that does not say is read once to count them."""
    if isinstance(loader, Iterator):
        raise WrongType(
            f"a {type(loader).__name__} can be read only once",
            where="loader",
            hint="Give a DataLoader or a list of batches, which can be read once an epoch.",
        )
    if not isinstance(loader, Iterable):
        raise WrongType(f"a {type(loader).__name__} yields no batches", where="loader")
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        with untouched(device):
            states = generator_states(loader)
            count = sum(1 for _ in loader)
            set_generator_states(loader, states)
        return count


def to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: to_device(part, device) for key, part in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(to_device(part, device) for part in value)
    return value


def copy_of(state: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in state.items()
    }
