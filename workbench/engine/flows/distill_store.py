"""Tensors of many batches, in memory up to a budget and in files beyond it.

Source: specification chapter 50, D4 and D5.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from workbench.engine.errors import NotWritable, WrongState

Mode = Literal["auto", "memory", "disk"]


def settled(x: Tensor) -> Tensor:
    """A copy of ``x`` that nothing writes to, dense in the order of ``x``'s dimensions in memory.

    What is read back from a file has that order too: kernels choose their arithmetic by it.
    """
    order = _memory_order(x)
    return x.detach().permute(order).contiguous().clone().permute(_inverse(order))


@dataclass(frozen=True)
class _Placed:
    """Where a tensor lies in its file, and what it is."""

    offset: int
    shape: tuple[int, ...]
    order: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass
class _Series:
    in_memory: list[Tensor] = field(default_factory=list)
    on_disk: list[_Placed] = field(default_factory=list)
    file: Path | None = None
    writer: BinaryIO | None = None


class TensorStore:
    """Series of tensors by name; ``close`` removes whatever it put on disk.

    ``auto``: a series that would take the memory beyond ``budget`` bytes goes to a file of its own,
    in a fresh folder under ``folder`` (None: the system's temporary folder).
    """

    def __init__(self, mode: Mode, *, budget: int, folder: str | None = None) -> None:
        self._mode = mode
        self._budget = budget
        self._parent = folder
        self._folder: Path | None = None
        self._series: dict[str, _Series] = {}
        self._used = 0
        self._files = 0

    def append(self, name: str, value: Tensor) -> None:
        """Add a copy of ``value`` to a series."""
        series = self._series.setdefault(name, _Series())
        size = value.numel() * value.element_size()
        beyond = self._mode == "auto" and self._used + size > self._budget
        if series.writer is None and (self._mode == "disk" or beyond):
            self._move_to_disk(name, series)
        if series.writer is not None:
            self._write(series, value)
        else:
            series.in_memory.append(settled(value))
            self._used += size

    def get(self, name: str, index: int) -> Tensor:
        """One tensor of a series, on the device it came from; not to be written to."""
        series = self._series[name]
        if series.file is None:
            return series.in_memory[index]
        return _read(series.file, series.on_disk[index])

    def has(self, name: str, index: int) -> bool:
        series = self._series.get(name)
        return series is not None and index < max(len(series.in_memory), len(series.on_disk))

    def drop(self, name: str) -> None:
        """Forget a series; its file is removed."""
        series = self._series.pop(name, None)
        if series is None:
            return
        self._used -= sum(t.numel() * t.element_size() for t in series.in_memory)
        if series.writer is not None:
            series.writer.close()
        if series.file is not None:
            series.file.unlink(missing_ok=True)

    def close(self) -> None:
        for name in list(self._series):
            self.drop(name)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def free_disk(self) -> int:
        """Bytes that a file of this store may still take."""
        return shutil.disk_usage(self._disk_folder()).free

    def _disk_folder(self) -> Path:
        if self._folder is None:
            try:
                if self._parent is not None:
                    Path(self._parent).mkdir(parents=True, exist_ok=True)
                self._folder = Path(tempfile.mkdtemp(prefix="workbench-distill-", dir=self._parent))
            except OSError as error:
                raise NotWritable(
                    f"no folder for the cache can be made: {error}",
                    where="cache_dir",
                    hint="Name another folder, or choose cache='memory'.",
                ) from error
        return self._folder

    def _move_to_disk(self, name: str, series: _Series) -> None:
        # Names of layers may hold characters and lengths that no file name can.
        series.file = self._disk_folder() / f"{self._files}.bin"
        self._files += 1
        series.writer = series.file.open("xb")
        for kept in series.in_memory:
            self._used -= kept.numel() * kept.element_size()
            self._write(series, kept)
        series.in_memory.clear()

    def _write(self, series: _Series, value: Tensor) -> None:
        assert series.writer is not None
        order = _memory_order(value)
        dense = value.detach().permute(order).contiguous().cpu()
        placed = _Placed(series.writer.tell(), tuple(dense.shape), order, value.dtype, value.device)
        try:
            series.writer.write(dense.reshape(-1).view(torch.uint8).numpy().data)
            series.writer.flush()
        except OSError as error:
            raise WrongState(
                f"the cache cannot be written: {error}",
                where=str(series.file),
                hint="Give a cache_dir with more room, fewer batches, or cache='none'.",
            ) from error
        series.on_disk.append(placed)


def _read(file: Path, placed: _Placed) -> Tensor:
    size = int(np.prod(placed.shape)) * placed.dtype.itemsize
    if not size:
        empty = torch.empty(placed.shape, dtype=placed.dtype, device=placed.device)
        return empty.permute(_inverse(placed.order))
    # Copied out of the mapping: the pages stay the system's, to keep or to give away.
    mapped = np.memmap(file, np.uint8, "r", placed.offset, (size,))
    flat = torch.from_numpy(np.array(mapped)).view(placed.dtype)
    return flat.view(placed.shape).to(placed.device).permute(_inverse(placed.order))


def _memory_order(x: Tensor) -> tuple[int, ...]:
    """The dimensions from the widest stride to the narrowest."""
    return tuple(sorted(range(x.dim()), key=lambda axis: (-x.stride()[axis], axis)))


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(axis) for axis in range(len(order)))
