"""Training data of a project, as ``fit`` reads it: (inputs, target) or (inputs, None)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.engine.errors import WrongState, WrongType, WrongValue
from workbench.studio.batches import read_npz, to_batch
from workbench.studio.code import load_object
from workbench.studio.figures import TRAIN_NOTICES
from workbench.studio.image_folder import ImageBatches, ImageFolder, list_pictures
from workbench.studio.metrics import Batch
from workbench.studio.project import DataSpec, Project

if TYPE_CHECKING:
    from workbench.studio.sources import LoadedSource

Item = tuple[tuple[Tensor, ...], Tensor | None]


@dataclass(frozen=True)
class TrainingData:
    """A loader that can be read once an epoch, and what it is in words."""

    loader: Any
    title: str
    notices: tuple[str, ...] = ()

    def first(self) -> Item:
        """The first batch; ``WrongValue`` for a loader that yields nothing."""
        found = next(iter(self.loader), None)
        if found is None:
            raise WrongValue(
                "the training data yields nothing",
                where="training data",
                hint="Give a loader that yields at least one batch, once an epoch.",
            )
        inputs, target = found
        return inputs, target

    def as_given(self) -> Any:
        """The loader for a recipe or loop of the user's.

        A loader of the user's yields what it yields. The workbench's own data comes as (x, target),
        for a model of several inputs as ((x, …), target), without targets as x or (x, …).
        """
        return _as_given(self.loader)

    def limited(self, samples: int) -> TrainingData:
        """The same with the first batches of each epoch only, about ``samples``; 0: all of them."""
        if not samples:
            return self
        inputs, _ = self.first()
        batches = max(1, round(samples / max(1, len(inputs[0]))))
        title = f"{self.title}, {batches} batches an epoch"
        return replace(self, loader=FirstBatches(self.loader, batches), title=title)


class FirstBatches:
    """The first ``count`` batches of each epoch of a loader."""

    def __init__(self, loader: Any, count: int) -> None:
        self.loader, self._count = loader, count
        for name in ("sampler", "batch_sampler", "generator"):
            setattr(self, name, getattr(loader, name, None))

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(epoch)

    def __len__(self) -> int:
        return min(self._count, len(self.loader))

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.loader), self._count)

    def as_given(self) -> FirstBatches:
        return FirstBatches(_as_given(self.loader), self._count)


class UserLoader:
    """A user's loader with its items told apart into inputs and target.

    What the training asks a loader for (its length, epochs, samplers and generators) is the
    loader's own.
    """

    def __init__(self, loader: Iterable[Any], model: nn.Module) -> None:
        if isinstance(loader, Iterator) or not isinstance(loader, Iterable):
            raise WrongType(
                f"a {type(loader).__name__} cannot be read once an epoch",
                where="training data",
                hint="Give a DataLoader or a list of batches.",
            )
        self.loader, self._model = loader, model
        self.sampler = getattr(loader, "sampler", None)
        self.batch_sampler = getattr(loader, "batch_sampler", None)
        self.generator = getattr(loader, "generator", None)

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Item]:
        for item in self.loader:
            batch = to_batch(item, self._model)
            yield batch.inputs, batch.target


class Unwrapped:
    """Batches of the workbench's own data as a ``DataLoader`` would give them."""

    def __init__(self, loader: ShuffledRows | ZooLoader) -> None:
        self._loader = loader
        self.set_epoch = loader.set_epoch

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        for inputs, target in self._loader:
            x = inputs[0] if len(inputs) == 1 else inputs
            yield x if target is None else (x, target)


def _as_given(loader: Any) -> Any:
    if isinstance(loader, UserLoader):
        return loader.loader
    return loader.as_given() if isinstance(loader, FirstBatches) else Unwrapped(loader)


class ShuffledRows(ABC):
    """``samples`` in another order each epoch; an epoch is its number and the seed."""

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        self.samples = samples
        self.batch_size = min(batch_size, samples)
        self._seed, self._epoch = seed, 0

    @abstractmethod
    def gather(self, rows: Tensor) -> Item:
        """The samples with these numbers as one batch."""

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self.samples // self.batch_size

    def __iter__(self) -> Iterator[Item]:
        """The whole batches of the epoch."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order = torch.randperm(self.samples, generator=generator)
        for rows in order.split(self.batch_size)[: len(self)]:
            yield self.gather(rows)


class Shuffled(ShuffledRows):
    """Samples in memory."""

    def __init__(self, batches: Sequence[Batch], batch_size: int, seed: int) -> None:
        columns = zip(*(batch.inputs for batch in batches), strict=True)
        self._inputs = tuple(torch.cat(list(parts)) for parts in columns)
        targets = [batch.target for batch in batches]
        self._target = None
        if all(target is not None for target in targets):
            self._target = torch.cat([target for target in targets if target is not None])
        super().__init__(len(self._inputs[0]), batch_size, seed)

    def gather(self, rows: Tensor) -> Item:
        inputs = tuple(part[rows] for part in self._inputs)
        return inputs, None if self._target is None else self._target[rows]


class Pictures(ShuffledRows):
    """Pictures of a folder, decoded as they are needed."""

    def __init__(self, pictures: ImageBatches, batch_size: int, seed: int) -> None:
        super().__init__(pictures.samples, batch_size, seed)
        self._pictures = pictures

    def gather(self, rows: Tensor) -> Item:
        batch = self._pictures.gather(rows.tolist())
        return batch.inputs, batch.target


class ZooLoader:
    """The training digits of an example, in the form that ``fit`` reads."""

    def __init__(self, name: str, batch_size: int, seed: int) -> None:
        from workbench import zoo

        self._digits = zoo.TrainingDigits(name, batch_size=batch_size, seed=seed)
        self.samples = self._digits.samples

    def set_epoch(self, epoch: int) -> None:
        self._digits.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._digits)

    def __iter__(self) -> Iterator[Item]:
        for pictures, target in self._digits:
            yield (pictures,), target


def training_data(
    project: Project,
    model: nn.Module,
    calibration: Sequence[tuple[Tensor, ...]],
    *,
    live: Any,
    batch_size: int,
) -> TrainingData:
    """What a project trains with: what ``train`` named, an example's own, or what calibrates it.

    The evaluation data is never trained with. Errors: ``WrongState`` for a live loader that is not
    in this process.
    """
    settings = project.settings
    spec, seed = settings.train, settings.seed
    if live is not None:
        return _named(UserLoader(live, model), type(live).__name__)
    if spec.kind == "live":
        raise WrongState(
            f"the training data was a {spec.name} of another Python process",
            where="training data",
            hint="Open the project again with workbench.open(model, data=…, train=loader).",
        )
    if spec.kind == "python":
        loader = load_object(spec.name, what="train")
        return _named(UserLoader(loader() if callable(loader) else loader, model), spec.name)
    if spec.kind == "npz":
        from workbench.studio.sources import input_names

        path = project.folder / Path(spec.name).expanduser()
        found = read_npz(path, input_names(model), DataSpec(batch_size=batch_size))
        data = _counted(Shuffled(found.evaluation, batch_size, seed), path.name)
        return replace(data, notices=tuple(found.notices))
    if spec.kind == "folder":
        pictures = _pictures_of(project, model, batch_size)
        return _counted(Pictures(pictures, batch_size, seed), pictures.title)
    source = settings.source.base
    zoo_data = source.kind == "zoo" and settings.data.kind == "zoo"
    if spec.kind == "zoo" or zoo_data:
        name = spec.name or source.name
        return _counted(ZooLoader(name, batch_size, seed), "digits, training split")
    loader = Shuffled([Batch(inputs) for inputs in calibration], batch_size, seed)
    notice = (
        f"No training data was given: the training learns from the {loader.samples} calibration "
        "samples. wb.open(…, train=loader) gives it more."
    )
    return TrainingData(loader, f"{loader.samples} calibration samples", (notice,))


def keep_notices(project: Project, data: TrainingData) -> None:
    """What is to be known of the training data stands beside what is known of the other."""
    known = project.store.get("figures") or {}
    if list(known.get(TRAIN_NOTICES, ())) != list(data.notices):
        project.store.put(figures={**known, TRAIN_NOTICES: list(data.notices)})


def try_training_files(project: Project, source: LoadedSource) -> None:
    """Run one batch of the files that a project trains with, where it names any.

    Errors: as those of the files, and ``WrongValue`` for what the model cannot be run on.
    """
    from workbench.studio.sources import expected_inputs, try_one_batch

    if project.settings.train.kind not in ("npz", "folder"):
        return
    model = source.model
    data = training_data(project, model, (), live=None, batch_size=2)
    inputs, _target = data.first()
    try_one_batch(source, expected_inputs(project, model), batch=inputs, where="training data")
    keep_notices(project, data)


def _pictures_of(project: Project, model: nn.Module, batch_size: int) -> ImageBatches:
    """The folder of ``train``; ``WrongValue`` when its classes are not those of the data."""
    spec, data = project.settings.train, project.settings.data
    path = project.folder / Path(spec.name).expanduser()
    found = ImageFolder(path, **spec.images.given()).batches(model, batch_size)
    if data.kind == "folder":
        classes = list_pictures(project.folder / Path(data.name).expanduser()).classes
        if classes and found.listing.classes != classes:
            raise WrongValue(
                f"its classes are {_names(found.listing.classes)}; those of the data are "
                f"{_names(classes)}",
                where=str(path),
                hint="A class is a sub-folder: give both folders the same ones.",
            )
    return found


def _names(classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:6])
    return f"{shown}, …" if len(classes) > 6 else shown or "none"


def _named(loader: UserLoader, name: str) -> TrainingData:
    return TrainingData(loader, name)


def _counted(loader: ShuffledRows | ZooLoader, name: str) -> TrainingData:
    return TrainingData(loader, f"{name}, {loader.samples} samples")
