"""What a block answered to each batch, in memory up to a budget and on disk beyond it."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

logger = logging.getLogger("workbench.engine.flows")


class ActivationStore:
    """One answer (tensors, alone or in tuples, lists and dicts) per batch; a new one replaces it.

    A context manager: temporary files are gone after it. Answers that hold anything but tensors,
    plain numbers and None stay in memory.
    """

    def __init__(self, byte_budget: int) -> None:
        self._budget = byte_budget
        self._used = 0
        self._kept: dict[int, tuple[Any, int]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> ActivationStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def put(self, batch: int, answer: Any) -> None:
        """Keep ``answer`` of ``batch`` instead of the one before."""
        _, size = self._kept.pop(batch, (None, 0))
        self._used -= size
        answer = pytree.tree_map_only(Tensor, lambda x: x.detach(), answer)
        leaves = pytree.tree_leaves(answer)
        size = sum(x.numel() * x.element_size() for x in leaves if isinstance(x, Tensor))
        plain = all(isinstance(x, Tensor | int | float | bool | None) for x in leaves)
        if self._used + size > self._budget and plain:
            if self._folder is None:
                logger.info("over %d bytes of activations: the rest goes to disk", self._budget)
                self._folder = tempfile.TemporaryDirectory(prefix="workbench-")
            # A view would be written with all of its memory.
            torch.save(pytree.tree_map_only(Tensor, lambda x: x.clone(), answer), self._path(batch))
            return
        self._kept[batch] = (answer, size)
        self._used += size

    def get(self, batch: int) -> Any:
        """The answer last put for ``batch``, on the device it came from."""
        if batch in self._kept:
            return self._kept[batch][0]
        return torch.load(self._path(batch), weights_only=True)

    def _path(self, batch: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"{batch}.pt"
