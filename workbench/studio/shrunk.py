"""The source of a smaller model: the base, the steps that made it smaller, and its weights.

Everything lies in the project's folder: ``shrink/1-prune.record.txt`` and its config for the first
step, ``shrink/2-decompose.json`` for the second, and ``weights.safetensors``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from workbench.engine.errors import MissingFile, WorkbenchError, WrongState, WrongValue
from workbench.engine.files.record import read_record
from workbench.engine.flows.decompose import decompose_network
from workbench.engine.flows.prune import rebuild_pruned
from workbench.engine.graph.capture import capture
from workbench.engine.graph.copying import copy_for_training
from workbench.studio.project import TOML_NAME, read_settings
from workbench.studio.source_spec import SourceSpec

FOLDER = "shrink"
WEIGHTS = "weights.safetensors"
_AGAIN = "Restore it from a copy, or make the project again from {base}."


def step_file(folder: Path, number: int, step: str, ending: str = "") -> Path:
    """A file of step ``number`` (from 1); without ``ending`` the one that says what was done."""
    usual = {"prune": "record.txt", "decompose": "json"}
    return folder / FOLDER / f"{number}-{step}.{ending or usual[step]}"


def rebuild(
    folder: str | os.PathLike[str], model: nn.Module, example: tuple[Tensor, ...]
) -> nn.Module:
    """The model of the project in ``folder``, made of ``model``, its base; ``example``: inputs."""
    path = Path(folder)
    return shrunk_model(path, read_settings(path / TOML_NAME).source, model, example)


def shrunk_model(
    folder: Path, source: SourceSpec, model: nn.Module, example: tuple[Tensor, ...]
) -> nn.Module:
    """A project's model, made of its base's; of a project that is no smaller one, ``model``.

    Errors: ``MissingFile`` for a file of a step or the weights, ``WrongValue`` for one that cannot
    be read or is another model's.
    """
    if source.kind != "shrunk":
        return model
    base = source.base
    try:
        for number, step in enumerate(source.steps, 1):
            path = step_file(folder, number, step)
            if not path.is_file():
                raise MissingFile(
                    f"the file of step {number} ({step}) is not there",
                    where=str(path),
                    hint=_AGAIN.format(base=base.name),
                )
            model = _STEPS[step](model, example, str(path))
    except WorkbenchError:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        raise WrongValue(
            f"the model cannot be made smaller as its steps say ({error})",
            where=str(folder / FOLDER),
            hint=_AGAIN.format(base=base.name),
        ) from error
    return _with_weights(model, folder / source.weights, base.name).eval()


def _pruned(model: nn.Module, example: tuple[Tensor, ...], record: str) -> nn.Module:
    captured = capture(model, example, dynamic=False)
    return rebuild_pruned(model, captured, read_record(record), record).eval()


def _decomposed(model: nn.Module, example: tuple[Tensor, ...], info: str) -> nn.Module:
    return decompose_network(copy_for_training(model), info)[0].eval()


_STEPS: dict[str, Any] = {"prune": _pruned, "decompose": _decomposed}


def _with_weights(model: nn.Module, path: Path, base: str) -> nn.Module:
    from workbench.studio.sources import read_weights

    state = read_weights(path)
    changed = copy_for_training(model)
    try:
        changed.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise WrongState(
            f"the weights are another model's ({' '.join(lines[:3])[:300]})",
            where=str(path),
            hint=_AGAIN.format(base=base),
        ) from error
    return changed
