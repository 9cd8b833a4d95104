"""The random state of a training: set from one seed, kept in checkpoints, given back at the end."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_state(device: torch.device) -> dict[str, Any]:
    """Torch's (CPU and ``device``), NumPy's and Python's state, as tensors and plain numbers."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, next_gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_rest": [int(position), int(has_gauss), float(gauss)],
        "python": torch.tensor(words, dtype=torch.int64),
        "python_rest": [version, next_gauss],
    }
    if device.type != "cpu":
        state["device"] = _device_module(device).get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Make the random states what ``random_state`` returned."""
    torch.set_rng_state(state["torch"].cpu())
    keys = state["numpy"].numpy().astype(np.uint32)
    position, has_gauss, gauss = state["numpy_rest"]
    np.random.set_state(("MT19937", keys, position, has_gauss, gauss))
    version, next_gauss = state["python_rest"]
    random.setstate((version, tuple(state["python"].tolist()), next_gauss))
    if device.type != "cpu" and "device" in state:
        _device_module(device).set_rng_state(state["device"].cpu(), device)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """All random states start from ``seed``; the caller's are back afterwards."""
    before = random_state(device)
    try:
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        set_random_state(before, device)


@contextmanager
def untouched(device: torch.device) -> Iterator[None]:
    """What is drawn inside does not change what is drawn afterwards."""
    before = random_state(device)
    try:
        yield
    finally:
        set_random_state(before, device)


def generators_of(loader: Any) -> list[torch.Generator]:
    """The generators of its own that a loader and its samplers draw their order from."""
    places = (loader, *(getattr(loader, name, None) for name in ("sampler", "batch_sampler")))
    inner = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    found: list[torch.Generator] = []
    for place in (*places, inner):
        generator = getattr(place, "generator", None)
        if isinstance(generator, torch.Generator) and all(generator is not g for g in found):
            found.append(generator)
    return found


def generator_states(loader: Any) -> list[Tensor]:
    return [generator.get_state() for generator in generators_of(loader)]


def set_generator_states(loader: Any, states: list[Tensor]) -> None:
    for generator, state in zip(generators_of(loader), states, strict=False):
        generator.set_state(state.cpu())


def _device_module(device: torch.device) -> Any:
    return torch.get_device_module(device)
