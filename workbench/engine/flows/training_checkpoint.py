"""Checkpoints of a training: written whole, read without unpickling, found again by number."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from workbench.engine.errors import NotWritable, WrongState, WrongValue
from workbench.engine.files.atomic import replace_on_success

log = logging.getLogger("workbench.engine.training")

FORMAT = "workbench-training-1"
BEST = "best.pt"
_NAME = re.compile(r"step-(\d{8,})\.pt")


@dataclass(frozen=True)
class CheckpointFile:
    """One checkpoint on disk: the state after ``step`` steps."""

    step: int
    path: Path


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.pt"


def list_checkpoints(folder: str | Path) -> list[CheckpointFile]:
    """The checkpoints of a folder, oldest first; none if there is no such folder."""
    path = Path(folder)
    if not path.is_dir():
        return []
    found = [(_NAME.fullmatch(file.name), file) for file in path.iterdir()]
    files = [CheckpointFile(int(match[1]), file) for match, file in found if match]
    return sorted(files, key=lambda file: file.step)


def remove_checkpoints(folder: str | Path, *, keep: int = 0) -> None:
    """Remove all but the newest ``keep`` checkpoints, and with ``keep`` 0 the best weights too."""
    files = list_checkpoints(folder)
    for file in files[: len(files) - keep]:
        file.path.unlink(missing_ok=True)
    if keep == 0:
        (Path(folder) / BEST).unlink(missing_ok=True)


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> int:
    """Write ``content`` (tensors and plain values) whole or not at all; its size in bytes.

    Errors: ``NotWritable``.
    """
    try:
        with replace_on_success(path) as temporary:
            torch.save({"format": FORMAT, **content}, temporary)
        return path.stat().st_size
    except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError on a full disk
        raise NotWritable(
            f"the checkpoint cannot be written ({str(error)[:200]})",
            where=str(path),
            hint="Free some space or choose another folder; the checkpoint before it is whole.",
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What ``write_checkpoint`` wrote, on the CPU and without unpickling.

    Errors: ``WrongValue`` for a file that is damaged or no checkpoint of a training.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises many kinds
        raise WrongValue(
            f"the checkpoint cannot be read ({type(error).__name__}: {str(error)[:200]})",
            where=str(path),
            hint="Remove the file; the one before it will be taken.",
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise WrongValue(
            "this is no checkpoint of a training",
            where=str(path),
            hint="A state_dict alone is loaded with the flow's restore function.",
        )
    return content


def newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read; None if there is none."""
    for file in reversed(list_checkpoints(folder)):
        try:
            return read_checkpoint(file.path)
        except WrongValue as error:
            log.warning("%s", error)
    return None


def check_same_model(found: Mapping[str, Any], expected: Mapping[str, Any], *, where: str) -> None:
    """Raise ``WrongState`` if two state dicts differ in names or shapes."""
    shapes = [
        {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
        for state in (found, expected)
    ]
    problems = [f"{name} is missing" for name in shapes[1] if name not in shapes[0]]
    problems += [f"{name} is not in the model" for name in shapes[0] if name not in shapes[1]]
    problems += [
        f"{name} has shape {shape}, the model's {shapes[1][name]}"
        for name, shape in shapes[0].items()
        if name in shapes[1] and shape != shapes[1][name]
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise WrongState(
            f"the checkpoint is of another model: {'; '.join(problems[:4])}{more}",
            where=where,
            hint="Train from the start, or resume with the model and configuration of then.",
        )
