"""Weights that a training found and the project's model has taken over; they can be taken back.

The file of each is named for its content and stays in the project; the list of them, the newest
last, is in the store. ``project.toml`` still says where the model comes from. Trials, exports and
the training of the weights before are put aside, and come back with them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.engine.errors import WrongState
from workbench.engine.files.atomic import replace_on_success
from workbench.studio.project import Project, not_writable
from workbench.studio.set_aside import bring_back, put_aside
from workbench.studio.training_state import KEY as TRAINING

if TYPE_CHECKING:
    from torch import nn

    from workbench.studio.tasks import Run

KEY = "weights"
_NAME = re.compile(r"[0-9a-f]{16}\.safetensors")


@dataclass(frozen=True)
class KeptWeights:
    """One set of weights: its file's name, and how they were trained ('': they came as a file)."""

    file: str
    method: str = ""
    metric: float | None = None


def read_weights_kept(value: Any) -> tuple[KeptWeights, ...]:
    """The stored list, checked: a project may come from anywhere."""
    found = []
    for row in value if isinstance(value, list) else ():
        if isinstance(row, dict) and _NAME.fullmatch(str(row.get("file"))):
            metric = row.get("metric")
            found.append(
                KeptWeights(
                    str(row["file"]),
                    str(row.get("method", "")),
                    float(metric) if isinstance(metric, int | float) else None,
                )
            )
    return tuple(found)


def kept(project: Project) -> tuple[KeptWeights, ...]:
    return read_weights_kept(project.store.get(KEY))


def path_of(project: Project, one: KeptWeights) -> Path:
    return project.folder / "weights" / one.file


def current(project: Project) -> Path | None:
    """The file with the weights the project's model has; None: those it came with."""
    found = kept(project)
    return path_of(project, found[-1]) if found else None


def with_kept_weights(project: Project, model: nn.Module) -> nn.Module:
    """``model`` itself, or a copy of it with the weights that were taken over.

    Errors: ``MissingFile``, ``WrongValue`` for a file that cannot be read, ``WrongState`` for
    weights of another model.
    """
    from workbench.engine.graph.copying import copy_for_training
    from workbench.studio.sources import read_weights

    path = current(project)
    if path is None:
        return model
    changed = copy_for_training(model).eval()
    _load(changed, read_weights(path), str(path))
    return changed


def use_weights(run: Run) -> None:
    """Make weights the project's own, or with ``back`` those before them again.

    ``path``: of a file with a state dict; None: what the last training found. Results belong to
    weights: with ``back`` those of before are there again, and those since then are gone.
    """
    from workbench.studio.tasks import ensure_open, evaluate_float

    run.report.stages(5)
    ensure_open(run.workspace, run.report)
    store = run.store
    found = kept(run.workspace.project)
    back = bool(run.args.get("back"))
    if back:
        if not found:
            raise WrongState("the model has the weights it came with", where="weights")
        found = found[:-1]
    else:
        found = (*found, _new(run))
        put_aside(store, _results(run, len(found) - 1))
    store.put(**{KEY: [asdict(one) for one in found]})
    run.workspace.forget_model()
    ensure_open(run.workspace, run.report)
    if back:
        bring_back(store, _results(run, len(found)))
    run.report.stage("evaluating the float model")
    evaluate_float(run)


def _results(run: Run, number: int) -> Path:
    """What was found out about the weights before the ``number``-th of the list."""
    return run.workspace.project.folder / "weights" / f"before-{number}.json"


def _new(run: Run) -> KeptWeights:
    from workbench.studio.sources import read_weights
    from workbench.studio.training import flow_of

    project = run.workspace.project
    if run.args.get("path") is not None:
        path = Path(str(run.args["path"])).expanduser()
        state = read_weights(path)
        _check_fit(run.source.model, state, str(path))
        return KeptWeights(_keep(project, state))
    training = run.store.get(TRAINING) or {}
    method = str(training.get("method"))
    if not training.get("finished"):
        raise WrongState(
            "there is no finished training whose weights could be used",
            where="weights",
            hint="Run train('finetune') or train('sparse') to its end first.",
        )
    flow = flow_of(run, method)
    plain = None
    if hasattr(flow, "plain"):
        plain = flow.plain(flow.restore(project.weights_of(method)))
    if plain is None:
        raise WrongState(
            f"a training by {method!r} changes more than the weights of the model",
            where="weights",
            hint="Export it; other weights come from train('finetune') and train('sparse').",
        )
    return KeptWeights(_keep(project, plain.state_dict()), method, training.get("metric"))


def _keep(project: Project, state: Mapping[str, Any]) -> str:
    """Write a state dict into the project; the file's name."""
    from safetensors.torch import save_file

    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    folder = project.folder / "weights"
    try:
        with replace_on_success(folder / "new.safetensors") as temporary:
            save_file(whole, temporary)
            digest = hashlib.sha256(temporary.read_bytes()).hexdigest()[:16]
        name = f"{digest}.safetensors"
        (folder / "new.safetensors").replace(folder / name)
    except OSError as error:
        raise not_writable(folder, error) from error
    return name


def _check_fit(model: nn.Module, state: Mapping[str, Any], where: str) -> None:
    from workbench.engine.graph.copying import copy_for_training

    _load(copy_for_training(model), state, where)


def _load(model: nn.Module, state: Mapping[str, Any], where: str) -> None:
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise WrongState(
            f"these weights are of another model ({str(error)[:300]})",
            where=where,
            hint="Take the weights before back, or open the model they belong to.",
        ) from error
