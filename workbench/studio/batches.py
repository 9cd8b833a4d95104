"""Calibration and evaluation batches: from a loader, from ``.npz``, and stored in a project."""

from __future__ import annotations

import inspect
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from workbench.engine.errors import MissingFile, WrongType, WrongValue
from workbench.engine.files.atomic import replace_on_success
from workbench.studio.metrics import Batch
from workbench.studio.project import DataSpec

MEMORY_LIMIT = 2**30
"""Bytes of evaluation batches that are kept; a longer loader is cut there, with a notice."""

FILE_LIMIT = 16 * 2**30
LABEL_NAMES = ("labels", "label", "targets", "target", "y")


@dataclass
class DataSet:
    """Batches in memory; ``calibration`` without targets."""

    calibration: list[tuple[Tensor, ...]]
    evaluation: Sequence[Batch]
    name: str = "data"
    notices: list[str] = field(default_factory=list)


def stored_hint() -> str:
    return (
        "Give data=loader: batches of inputs, (inputs, labels), or a dictionary of tensors; "
        "the path of an .npz file, or of a folder of pictures with a sub-folder for each class."
    )


def cut(data: Any, model: nn.Module, spec: DataSpec) -> DataSet:
    """Take a loader's batches; the first ones calibrate, all of them evaluate.

    ``data`` can be a mapping with ``calibration`` and ``evaluation`` loaders instead. Errors:
    ``WrongType`` for batches that hold no tensors, ``WrongValue`` for a loader without batches.
    """
    if isinstance(data, Mapping) and "calibration" in data:
        calibration, _ = _read(data["calibration"], model, spec.calibration_batches)
        evaluation, notices = _read(data.get("evaluation", data["calibration"]), model, None)
        name = "calibration and evaluation loaders"
    else:
        evaluation, notices = _read(data, model, None)
        calibration = evaluation[: spec.calibration_batches]
        name = type(data).__name__
    for what, found in (("calibration", calibration), ("evaluation", evaluation)):
        if not found:
            raise WrongValue(f"the {what} loader yields nothing", where="data", hint=stored_hint())
    return DataSet([batch.inputs for batch in calibration], evaluation, name, notices)


def _read(loader: Any, model: nn.Module, limit: int | None) -> tuple[list[Batch], list[str]]:
    if isinstance(loader, Tensor | np.ndarray):
        loader = [loader]
    if not isinstance(loader, Iterable):
        raise WrongType(
            f"{type(loader).__name__} yields no batches", where="data", hint=stored_hint()
        )
    batches: list[Batch] = []
    used = 0
    for item in loader:
        if limit is not None and len(batches) >= limit:
            break
        batch = to_batch(item, model)
        used += sum(x.numel() * x.element_size() for x in batch.inputs)
        if used > MEMORY_LIMIT and batches:
            return batches, [f"Only the first {len(batches)} batches of the loader are used."]
        batches.append(batch)
    return batches, []


def to_batch(item: Any, model: nn.Module) -> Batch:
    """One item of a loader: what of it are the inputs follows from ``forward``'s parameters."""
    every = inspect.signature(model.forward).parameters.values()
    if by_name := [p.name for p in every if p.kind == p.KEYWORD_ONLY and p.default is p.empty]:
        raise WrongValue(
            f"{type(model).__name__}.forward() takes {', '.join(by_name)} by keyword only; inputs "
            "are given by position here",
            where="model",
            hint="Wrap it in a torch.nn.Module whose forward takes them by position.",
        )
    parameters = [
        p for p in every if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)
    ]
    variadic = any(p.kind == p.VAR_POSITIONAL for p in parameters)
    names = [p.name for p in parameters if p.kind != p.VAR_POSITIONAL]
    required = sum(1 for p in parameters if p.default is p.empty and p.kind != p.VAR_POSITIONAL)
    if isinstance(item, Mapping):
        label = next((n for n in LABEL_NAMES if n in item and n not in names), None)
        inputs = []
        for parameter in names:
            if parameter not in item:
                break
            inputs.append(to_tensor(item[parameter]))
        if len(inputs) < max(1, required):
            raise WrongValue(
                f"a batch has {', '.join(map(str, item))}; the model wants {', '.join(names)}",
                where="data",
            )
        return Batch(tuple(inputs), None if label is None else to_tensor(item[label]))
    if not isinstance(item, list | tuple):
        return Batch((to_tensor(item),))
    if (
        len(item) == 2
        and isinstance(item[0], list | tuple)
        and all(isinstance(x, Tensor | np.ndarray) for x in item[0])
    ):
        return Batch(tuple(to_tensor(x) for x in item[0]), to_tensor(item[1]))
    tensors = tuple(to_tensor(x) for x in item)
    if not tensors:
        raise WrongValue("a batch is empty", where="data", hint=stored_hint())
    fits_without = not variadic and len(tensors) - 1 < max(1, required)
    too_many = not variadic and len(tensors) > len(names)
    looks_like_label = len(tensors) > 1 and not tensors[-1].is_floating_point()
    if len(tensors) > 1 and not fits_without and (too_many or looks_like_label):
        return Batch(tensors[:-1], tensors[-1])
    return Batch(tensors)


def to_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, int | float):
        return torch.tensor([value])
    if isinstance(value, list) and value and all(isinstance(x, int | float) for x in value):
        return torch.tensor(value)
    raise WrongType(
        f"a batch holds {type(value).__name__}, not tensors", where="data", hint=stored_hint()
    )


# -- .npz -----------------------------------------------------------------------------------------


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """All arrays of an ``.npz`` file, without pickles and without trusting its headers.

    Errors: ``MissingFile``; ``WrongValue`` for what is not a plain archive of number arrays, or
    claims to be larger than it is.
    """
    if not path.is_file():
        raise MissingFile("the file is not there", where=str(path))
    where = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
            unfolded = sum(m.file_size for m in members)
            if unfolded > FILE_LIMIT:
                raise WrongValue(f"the file holds more than {FILE_LIMIT >> 30} GiB", where=where)
            if unfolded > (free := psutil.virtual_memory().available):
                raise WrongValue(
                    f"the file unfolds to {unfolded >> 20:,} MB; {free >> 20:,} MB of memory are "
                    "free",
                    where=where,
                    hint="Take fewer samples.",
                )
            for member in members:
                with archive.open(member) as stream:
                    version = np.lib.format.read_magic(stream)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = read(stream)
                count = 1
                for size in shape:
                    count *= int(size)
                if dtype.kind not in "biuf":
                    raise WrongValue(f"{member.filename} holds {dtype}, not numbers", where=where)
                if count * dtype.itemsize > member.file_size:
                    raise WrongValue(f"{member.filename} is shorter than it says", where=where)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (
        zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError, EOFError,
        OSError,
    ) as error:  # fmt: skip
        if isinstance(error, WrongValue):
            raise
        raise WrongValue(
            f"the file is not a readable .npz ({error})",
            where=where,
            hint="Write it with numpy.savez(path, x=inputs, labels=labels).",
        ) from error


def read_npz(path: Path, names: Sequence[str], spec: DataSpec) -> DataSet:
    """Arrays named as the model's inputs, samples along the first axis, and optional ``labels``."""
    arrays = read_arrays(path)
    labels = arrays.pop("labels", None)
    notices: list[str] = []
    wanted = [name for name in names if name in arrays]
    if not wanted and len(arrays) == 1:
        wanted = list(arrays)
        notices.append(
            f"{path.name}: the array {wanted[0]} is taken as the input; the names allowed are "
            f"{', '.join(names)} and labels"
        )
    if not wanted:
        raise WrongValue(
            f"the file has {', '.join(arrays) or 'no arrays'}; the model wants {', '.join(names)}",
            where=str(path),
            hint="Name the arrays as the model's inputs; labels go into one named labels.",
        )
    if missing := [n for n in names[: len(wanted)] if n not in wanted and wanted[0] in names]:
        # The batches are positional: what comes after a gap would take the gap's place.
        raise WrongValue(
            f"the file has {', '.join(wanted)}, and no {', '.join(missing)}, which the model takes "
            f"before {wanted[-1]}",
            where=str(path),
            hint="Add it to the file.",
        )
    columns = [torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in wanted]
    lengths = {len(c) if c.dim() else 0 for c in columns}
    if labels is not None:
        lengths.add(len(labels) if labels.ndim else 0)
    if len(lengths) != 1 or lengths == {0}:
        raise WrongValue(
            f"the arrays have different or no lengths: {sorted(lengths)}", where=str(path)
        )
    parts = [torch.split(c, spec.batch_size) for c in columns]
    inputs = [tuple(batch) for batch in zip(*parts, strict=True)]
    if labels is None:
        evaluation = [Batch(batch) for batch in inputs]
    else:
        targets = torch.split(torch.from_numpy(np.ascontiguousarray(labels)), spec.batch_size)
        evaluation = [Batch(batch, target) for batch, target in zip(inputs, targets, strict=True)]
    return DataSet(inputs[: spec.calibration_batches], evaluation, path.name, notices)


# -- batches stored in a project ------------------------------------------------------------------


def write_stored(path: Path, data: DataSet) -> None:
    """Keep a live model's calibration and evaluation batches in the project (decision 21)."""
    arrays: dict[str, Any] = {}
    for i, batch in enumerate(data.calibration):
        for j, x in enumerate(batch):
            arrays[f"calibration_{i}_{j}"] = _array(x)
    for i, item in enumerate(data.evaluation):
        for j, x in enumerate(item.inputs):
            arrays[f"evaluation_{i}_{j}"] = _array(x)
        if item.target is not None:
            arrays[f"target_{i}"] = _array(item.target)
    with replace_on_success(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)


def _array(value: Tensor) -> Any:
    """NumPy has no bfloat16: as float32, which holds every value of it."""
    value = value.detach().cpu()
    return (value.float() if value.dtype is torch.bfloat16 else value).numpy()


def read_stored(path: Path) -> DataSet:
    arrays = read_arrays(path)

    def group(prefix: str) -> list[tuple[Tensor, ...]]:
        found: list[tuple[Tensor, ...]] = []
        while f"{prefix}_{len(found)}_0" in arrays:
            i = len(found)
            parts: list[Tensor] = []
            while f"{prefix}_{i}_{len(parts)}" in arrays:
                parts.append(torch.from_numpy(arrays[f"{prefix}_{i}_{len(parts)}"]))
            found.append(tuple(parts))
        return found

    evaluation = []
    for i, inputs in enumerate(group("evaluation")):
        target = arrays.get(f"target_{i}")
        evaluation.append(Batch(inputs, None if target is None else torch.from_numpy(target)))
    return DataSet(group("calibration"), evaluation, "stored batches")
