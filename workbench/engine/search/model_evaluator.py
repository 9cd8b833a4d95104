"""``ModelEvaluator``: calibrates and judges a model on raw binary files, without labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from workbench.engine.errors import MissingFile, WrongState, WrongType, WrongValue
from workbench.engine.flows.arguments import check_type
from workbench.engine.search.evaluator import AutoCalibrationEvaluatorBase
from workbench.engine.search.identity import digest_of

DATA_TYPES = (
    "float64", "float32", "float16", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip


class ModelEvaluator(AutoCalibrationEvaluatorBase):
    """Data from folders of headerless little-endian arrays; the target is likeness of outputs.

    ``data_dir``: "dir_a/;dir_b/", one folder an input; its files in ascending name order are the
    batches. ``input_shape``: "name1:n,c,h,w;name2:n,l", the name being everything before the last
    colon. ``data_types``: "float32;int64", see ``DATA_TYPES``. All in the order of the model's
    inputs. ``target_similarity``: smallest mean cosine similarity of the outputs that satisfies.

    Errors: ``TypeError`` for arguments that are no strings and for an unknown data type;
    ``ValueError`` for malformed shapes and for different numbers of folders, shapes and types.

    Source: specification chapter 20 section 2.1.
    """

    def __init__(
        self, data_dir: str, input_shape: str, data_types: str, *, target_similarity: float = 0.99
    ) -> None:
        for name, value in (
            ("data_dir", data_dir),
            ("input_shape", input_shape),
            ("data_types", data_types),
        ):
            check_type("ModelEvaluator", name, value, str)
        self.folders = [Path(part.strip()).absolute() for part in data_dir.split(";") if part]
        self.shapes = dict(_shape(part) for part in input_shape.split(";") if part)
        self.dtypes = [_dtype(part.strip()) for part in data_types.split(";") if part]
        self.target_similarity = target_similarity
        counts = (len(self.folders), len(self.shapes), len(self.dtypes))
        if len(set(counts)) != 1 or not counts[0]:
            raise WrongValue(
                f"data_dir names {counts[0]} folders, input_shape {counts[1]} inputs and "
                f"data_types {counts[2]} types; the numbers must be equal",
                where="ModelEvaluator",
            )

    @property
    def identity(self) -> str:
        """Changes with the settings and with the files, as far as size and date tell."""
        files = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in self._all_files()]
        settings = ({k: list(v) for k, v in self.shapes.items()}, [str(d) for d in self.dtypes])
        return digest_of("ModelEvaluator", *settings, self.target_similarity, files)

    def calibration(self, model: nn.Module, batch_num: int | None = None) -> None:
        """Run ``model`` on ``batch_num`` batches, None: on all.

        Errors: ``TypeError``, ``ValueError`` for a ``batch_num`` that is no positive integer;
        ``FileNotFoundError`` for a missing folder; ``RuntimeError`` for too few files.
        """
        for _ in self._outputs(model, batch_num, "batch_num"):
            pass

    def evaluate(self, model: nn.Module, iterations: int | None = None) -> list[Any]:
        """The outputs for ``iterations`` batches, None: for all; errors as in ``calibration``."""
        return list(self._outputs(model, iterations, "iterations"))

    def metric_eval(self, original_metric: Any, new_metric: Any) -> tuple[bool, float]:
        """Mean cosine similarity of the outputs against ``target_similarity``; 1 - it is lost."""
        pairs = zip(_flat(original_metric), _flat(new_metric), strict=True)
        values = [_cosine(a, b) for a, b in pairs]
        similarity = math.fsum(values) / len(values)
        return similarity >= self.target_similarity, 1.0 - similarity

    def _outputs(self, model: nn.Module, count: int | None, argument: str) -> Iterator[Any]:
        batches = self._batches(count, argument)
        device = next((t.device for t in (*model.parameters(), *model.buffers())), None)
        model.eval()
        for files in batches:
            inputs = [self._read(i, path) for i, path in enumerate(files)]
            with torch.no_grad():
                output = model(*(x.to(device) if device else x for x in inputs))
            yield pytree.tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, output)

    def _batches(self, count: int | None, argument: str) -> list[tuple[Path, ...]]:
        check_type("ModelEvaluator", argument, count, int, optional=True)
        if count is not None and count <= 0:
            raise WrongValue(
                f"{argument} is {count}; allowed: a whole number above 0", where="ModelEvaluator"
            )
        lists = [_files(folder) for folder in self.folders]
        for folder, files in zip(self.folders, lists, strict=True):
            if len(files) < (count or 1) or (count is None and len(files) != len(lists[0])):
                wanted = count or max(1, len(lists[0]))
                raise WrongState(
                    f"{folder} holds {len(files)} files, {wanted} are wanted",
                    where="ModelEvaluator",
                    hint=f"add files or lower {argument}.",
                )
        return list(zip(*(files[:count] for files in lists), strict=True))

    def _read(self, number: int, path: Path) -> Tensor:
        name, shape = list(self.shapes.items())[number]
        data = np.fromfile(path, self.dtypes[number])
        if data.size != math.prod(shape):
            raise WrongValue(
                f"it holds {data.size} elements of {self.dtypes[number].name}; input {name} with "
                f"shape {shape} has {math.prod(shape)}",
                where=str(path),
            )
        return torch.from_numpy(data.reshape(shape))

    def _all_files(self) -> Iterator[Path]:
        for folder in self.folders:
            yield from _files(folder)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise MissingFile(f"there is no folder {folder}", where="ModelEvaluator data_dir")
    return sorted(path for path in folder.iterdir() if path.is_file())


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, colon, numbers = text.rpartition(":")
    try:
        shape = tuple(int(number) for number in numbers.split(","))
    except ValueError:
        shape = ()
    if not name.strip() or not colon or not shape or min(shape) < 1:
        raise WrongValue(
            f"input_shape holds {text!r}; allowed: name:n,c,h,w",
            where="ModelEvaluator",
        )
    return name.strip(), shape


def _dtype(name: str) -> np.dtype[Any]:
    if name not in DATA_TYPES:
        raise WrongType(
            f"data_types holds {name!r}; allowed: {', '.join(DATA_TYPES)}", where="ModelEvaluator"
        )
    return np.dtype(name).newbyteorder("<")


def _flat(outputs: Any) -> list[Tensor]:
    leaves = (x for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor))
    return [x.reshape(-1).double() for x in leaves]


def _cosine(a: Tensor, b: Tensor) -> float:
    if not bool(a.any()) or not bool(b.any()):
        return float(bool((a == b).all()))
    return float(a @ b / (a.norm() * b.norm()))
