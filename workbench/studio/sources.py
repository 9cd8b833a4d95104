"""Where a project's model and data come from, loaded and ready to run."""

from __future__ import annotations

import importlib
import inspect
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from workbench.engine.errors import MissingFile, WrongState, WrongType, WrongValue
from workbench.engine.graph.capture import copy_model
from workbench.studio import metrics
from workbench.studio.batches import DataSet, cut, read_npz, read_stored, stored_hint
from workbench.studio.code import load_object
from workbench.studio.expected import ExpectedInput, expected_of_file, expected_of_model, mismatch
from workbench.studio.image_folder import ImageBatches, read_folder
from workbench.studio.kept_weights import with_kept_weights
from workbench.studio.metrics import Batch, Metric, Score
from workbench.studio.project import MODEL_FILES, DataSpec, Project
from workbench.studio.shrunk import shrunk_model
from workbench.studio.source_spec import SourceSpec

OFFERED = (
    "This version opens an example of workbench.zoo by name, a model object "
    "(workbench.open(model, data=loader)), an exported program (.pt2), an ONNX file, "
    "a folder of transformers (config.json and safetensors), package.module:factory where code is "
    "allowed, and a project folder."
)


@dataclass(frozen=True)
class LiveSource:
    """What only this process has: the user's own objects."""

    model: nn.Module
    data: DataSet | None = None
    metric: Score | None = None
    train: Any = None


@dataclass
class LoadedSource:
    """A model in evaluation mode with its data and metric.

    ``calibration`` are input tuples; ``evaluation`` batches with their targets.
    """

    title: str
    data_title: str
    model: nn.Module
    calibration: list[tuple[Tensor, ...]]
    evaluation: Sequence[Batch]
    metric: Metric
    notices: list[str] = field(default_factory=list)

    @property
    def example(self) -> tuple[Tensor, ...]:
        return self.calibration[0]


def load_source(project: Project, live: LiveSource | None = None) -> LoadedSource:
    """Load the model, the data and the metric that ``project.toml`` names.

    Errors: ``WrongState`` for a live model that is not in this process, and what loading the parts
    raises.
    """
    settings = project.settings
    model, title, zoo_data, zoo_metric = _load_model(project, live)
    data = _load_data(project, model, zoo_data, live)
    if not data.calibration:
        raise WrongValue(
            "the data has no batch", where="data", hint="Give a loader that yields at least one."
        )
    model = shrunk_model(project.folder, project.source, model.eval(), data.calibration[0])
    model = with_kept_weights(project, model)
    reference = copy_model(model)
    metric = metrics.resolve(
        settings.metric or zoo_metric,
        reference=reference,
        batches=data.evaluation,
        given=live.metric if live else None,
    )
    loaded = LoadedSource(
        title=title,
        data_title=_describe(data),
        model=model,
        calibration=data.calibration,
        evaluation=data.evaluation,
        metric=metric,
        notices=list(data.notices),
    )
    try_one_batch(loaded, expected_inputs(project, model))
    return loaded


def expected_inputs(project: Project, model: nn.Module) -> tuple[ExpectedInput, ...]:
    """What the model wants: as its file says, else what its first layer gives away."""
    if project.source.kind in MODEL_FILES:
        return expected_of_file(project.folder / Path(project.source.name).expanduser())
    return expected_of_model(model, input_names(model))


def base_model(project: Project, live: LiveSource | None) -> nn.Module:
    """What a pruned or decomposed project's model was made of, in evaluation mode."""
    return _load_model(project, live)[0].eval()


def _load_model(
    project: Project, live: LiveSource | None
) -> tuple[nn.Module, str, DataSet | None, str]:
    source = project.source.base
    if live is not None:
        # A copy over the same parameters: the user's may be in training mode and stays in it.
        return copy_model(live.model), source.name or type(live.model).__name__, None, ""
    if source.kind == "zoo":
        return _load_zoo(source, project.settings.data)
    if source.kind == "python":
        return _load_factory(project, source), source.name, None, ""
    if source.kind in MODEL_FILES:
        path = project.folder / Path(source.name).expanduser()
        module, function = MODEL_FILES[source.kind]
        read = getattr(importlib.import_module(module), function)
        return read(path), Path(source.name).stem, None, ""
    if source.kind == "live":
        raise WrongState(
            f"the project was made from a {source.name} object of another Python process",
            where="source",
            hint="Results, configuration and exports can be looked at here. To calculate, open it "
            "again with workbench.open(model, data=loader, project=folder), or name a "
            "package.module:factory as its source.",
        )
    raise WrongState(
        "the project has no model", where="source", hint="Open a file or an example as a project."
    )


def _load_zoo(source: SourceSpec, spec: DataSpec) -> tuple[nn.Module, str, DataSet, str]:
    from workbench import zoo

    try:
        example = zoo.load(source.name)
    except ValueError as error:
        raise WrongValue(str(error), where="source.name") from error
    calibration: list[tuple[Tensor, ...]] = [
        (x,) for x in torch.split(example.data.calibration, spec.batch_size)
    ]
    targets = torch.split(example.data.targets, spec.batch_size)
    pictures = torch.split(example.data.evaluation, spec.batch_size)
    evaluation = [Batch((x,), y) for x, y in zip(pictures, targets, strict=True)]
    data = DataSet(calibration[: spec.calibration_batches], evaluation, name="digits")
    return example.model, example.title, data, example.metric


def _load_factory(project: Project, source: SourceSpec) -> nn.Module:
    factory = load_object(source.name, what="source")
    try:
        model = factory(**dict(source.arguments))
    except TypeError as error:
        raise WrongValue(
            f"{source.name} cannot be called with {dict(source.arguments)} ({error})",
            where="source.arguments",
        ) from error
    if not isinstance(model, nn.Module):
        raise WrongType(
            f"{source.name} returned {type(model).__name__}, not a torch.nn.Module", where="source"
        )
    if project.source.kind == "shrunk":  # its weights come with its steps
        return model
    weights = project.folder / source.weights if source.weights else project.state_path
    if source.weights or weights.exists():
        model.load_state_dict(read_weights(weights))
    return model


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from ``.safetensors``, or a torch file read with ``weights_only``."""
    if not path.is_file():
        raise MissingFile("the file of weights is not there", where=str(path))
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own text tells how to run what is in there
        raise WrongValue(
            "the file holds pickled objects that are no tensors, and those are never loaded",
            where=str(path),
            hint="Save them with safetensors, or with torch.save(model.state_dict(), path).",
        ) from error
    except Exception as error:  # every reader has its own zoo of errors; the file is at fault
        raise WrongValue(
            f"the weights cannot be read ({type(error).__name__}: {str(error)[:300]})",
            where=str(path),
            hint="Save them with safetensors, or with torch.save(model.state_dict(), path).",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WrongValue(
            "the file holds more than a state dict",
            where=str(path),
            hint="Save only model.state_dict().",
        )
    return state


def _load_data(
    project: Project, model: nn.Module, zoo_data: DataSet | None, live: LiveSource | None
) -> DataSet:
    spec = project.settings.data
    if live is not None and live.data is not None:
        return live.data
    if spec.kind == "zoo" and zoo_data is not None:
        return zoo_data
    if spec.kind == "npz":
        path = project.folder / Path(spec.name).expanduser()
        return read_npz(path, input_names(model), spec)
    if spec.kind == "folder":
        return read_folder(project.folder / Path(spec.name).expanduser(), model, spec)
    if spec.kind == "stored":
        return read_stored(project.data_path)
    if spec.kind == "python":
        loader = load_object(spec.name, what="data")
        return cut(loader() if callable(loader) else loader, model, spec)
    raise WrongState("the project has no data", where="data", hint=stored_hint())


def input_names(model: nn.Module) -> list[str]:
    """Names of the positional parameters of ``forward``."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return [p.name for p in parameters if p.kind in kinds]


def try_one_batch(
    loaded: LoadedSource,
    expected: Sequence[ExpectedInput] = (),
    *,
    batch: tuple[Tensor, ...] | None = None,
    where: str = "data",
) -> None:
    """Run one batch, so that data that does not fit is said in words before any long work.

    ``batch``: another one than the first that calibrates, of the data that ``where`` names.
    """
    inputs = loaded.example if batch is None else batch
    with torch.no_grad():
        try:
            output = copy_model(loaded.model)(*inputs)
        except Exception as error:  # whatever the user's forward raises
            shapes = ", ".join("×".join(map(str, x.shape)) for x in inputs)
            failed = (
                f"the model cannot be run on a batch of {shapes} "
                f"({type(error).__name__}: {str(error)[:300]})"
            )
            why = mismatch(expected, inputs)
            raise WrongValue(
                f"{why}; {failed}" if why else failed,
                where=where,
                hint="Change the data so that it fits."
                if why
                else "Compare the data's shape and type with what the model expects.",
            ) from error
    if not _finite(output):
        loaded.notices.append("The float model's output holds NaN or infinity.")


def _finite(output: Any) -> bool:
    if isinstance(output, Tensor):
        return not output.is_floating_point() or bool(torch.isfinite(output).all())
    if isinstance(output, list | tuple):
        return all(_finite(part) for part in output)
    return True


def _describe(data: DataSet) -> str:
    if isinstance(data.evaluation, ImageBatches):  # decoding them all to count them would be dear
        samples = data.evaluation.samples
    else:
        samples = sum(len(batch.inputs[0]) for batch in data.evaluation)
    calibration = sum(len(batch[0]) for batch in data.calibration)
    return f"{data.name}, {samples} samples, calibrated with {calibration}"
