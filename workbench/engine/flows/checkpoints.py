"""The checkpoint that a restoring function loads: a state dict, read without unpickling code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.errors import MissingFile, WorkbenchError, WrongState
from workbench.engine.modules.qat.quantisers import QuantisingModule

_PREFIX = "module."
_FORBIDDEN = re.compile(r"Unsupported (?:global: GLOBAL|class) ([\w.]+)")


class MissingState(WorkbenchError, KeyError):
    """A checkpoint file has no state dict under the name that was given."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show its repr


def read_state(pth_file: str, name: str | None) -> dict[str, Tensor]:
    """The state dict in ``pth_file``, or the one that it holds under ``name``.

    Errors: ``FileNotFoundError``; ``KeyError`` for a ``name`` that it lacks or that is empty;
    ``RuntimeError`` for a file that holds no state dict.
    """
    path = Path(pth_file)
    if not path.is_file():
        raise MissingFile("the checkpoint does not exist", where=pth_file)
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WrongState(
            f"it is not a checkpoint that can be read safely: {_unsafe(error)}",
            where=pth_file,
            hint="Write it with torch.save(model.state_dict(), ...).",
        ) from error
    if name is not None:
        found = state.get(name) if isinstance(state, Mapping) else None
        if not found:
            held = ", ".join(map(str, state)) if isinstance(state, Mapping) else "no names"
            raise MissingState(
                f"there is no state dict named {name!r}; the file holds {held[:200]}",
                where=f"{pth_file} state_dict_name",
            )
        state = found
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WrongState(
            "it holds no state dict (names and tensors)",
            where=pth_file,
            hint=f"Say under which name it holds one: state_dict_name{_candidates(state)}.",
        )
    return dict(state)


def load_state(model: nn.Module, state: dict[str, Tensor], pth_file: str, *, created: str) -> None:
    """Load a state dict whose names may begin with ``module.``, all of it or ``RuntimeError``.

    ``created``: what the model was made of, for the error's hint.
    """
    state = _without_prefix(state, model)
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise WrongState(
            f"the checkpoint does not fit the model and {created}: {_some_lines(error)}",
            where=pth_file,
            hint=f"Give the model and {created} that it was trained with.",
        ) from error
    foreign = [
        f"{path} ({', '.join(widths)})"
        for path, module in model.named_modules()
        if isinstance(module, QuantisingModule)
        and (widths := module.foreign_widths(_below(path, state)))
    ]
    if foreign:
        raise WrongState(
            f"it was trained with other bit widths than {created} says: {_some(foreign)}",
            where=pth_file,
            hint=f"Give {created} that it was trained with.",
        )


def _without_prefix(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """What a DistributedDataParallel's names are inside it."""
    if _PREFIX.rstrip(".") in dict(model.named_children()):
        return state
    if not all(key.startswith(_PREFIX) for key in state):
        return state
    return {key.removeprefix(_PREFIX): value for key, value in state.items()}


def _below(path: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{path}." if path else ""
    return {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _candidates(state: Any) -> str:
    """The names under which a checkpoint holds something like a state dict."""
    pairs = state.items() if isinstance(state, Mapping) else ()
    held = [repr(name) for name, value in pairs if isinstance(value, Mapping) and value]
    return f" ({', '.join(held)[:200]})" if held else ""


def _unsafe(error: Exception) -> str:
    """Torch's reason without its advice to read the file unsafely."""
    text = str(error)
    found = _FORBIDDEN.search(text)
    if found:
        return f"it holds a {found[1]}, not only tensors, and reading that may run code"
    return "torch cannot read it" if "weights_only" in text else _some_lines(error)


def _some_lines(error: Exception, most: int = 6) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    more = f" (and {len(lines) - most} more)" if len(lines) > most else ""
    return "; ".join(line[:300] for line in lines[:most]) + more
