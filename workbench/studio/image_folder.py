"""A folder of pictures as data: a class is a sub-folder; pictures are read when they are needed.

Pictures become tensors as torchvision's usual transforms make them: the shorter side is resized
(bilinear, with antialiasing), the centre is cut out, values become 0 … 1 and are normalised.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from torch import Tensor, nn

from workbench.engine.errors import MissingFile, WrongValue
from workbench.studio.batches import DataSet
from workbench.studio.expected import model_channels
from workbench.studio.image_settings import ImageSettings, check_image_settings
from workbench.studio.metrics import Batch
from workbench.studio.project import DataSpec

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Formats that are opened: none that runs another program, as PostScript does."""

MOST_PIXELS = 64_000_000
"""A picture that claims more is refused before it is unpacked."""

CACHE_BYTES = 256 * 2**20
"""Bytes of decoded pictures that are kept, so that a search does not decode them every time."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class ImageFolder:
    """A folder of pictures, as data for ``workbench.open``.

    The labels are the places of the sub-folders in alphabetical order; pictures that lie in the
    folder itself have none. Settings as in ``ImageSettings``.
    """

    path: str | os.PathLike[str]
    resize: int = 0
    crop: int = 0
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    @property
    def settings(self) -> ImageSettings:
        mean, std = (None if v is None else tuple(v) for v in (self.mean, self.std))
        return ImageSettings(self.resize, self.crop, mean, std)

    def batches(self, model: nn.Module | int = 3, batch_size: int = 64) -> ImageBatches:
        """The pictures as batches, decoded one batch at a time, always in the same order.

        ``model``: whose input they are, or its number of channels. Errors: ``MissingFile``;
        ``WrongValue`` for a folder without pictures.
        """
        channels = model if isinstance(model, int) else model_channels(model)
        settings = self.settings
        check_image_settings(settings, where="data")
        return ImageBatches(list_pictures(Path(self.path)), settings, channels, batch_size)


@dataclass(frozen=True)
class Listing:
    """Pictures of a folder in alphabetical order, and the class of each; no classes: no labels."""

    folder: Path
    files: tuple[Path, ...]
    classes: tuple[str, ...]
    labels: tuple[int, ...] = ()


def list_pictures(folder: Path) -> Listing:
    """The pictures in a folder's sub-folders, at any depth, else those in the folder itself.

    Errors: ``MissingFile`` when there is no such folder, ``WrongValue`` when it has no picture.
    """
    if not folder.is_dir():
        raise MissingFile("there is no such folder", where=str(folder), hint="Check the path.")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[:1] != ".")
    inside = [_pictures(folder / name) for name in names]
    if any(inside):
        files = [file for found in inside for file in found]
        labels = [label for label, found in enumerate(inside) for _file in found]
        return Listing(folder, tuple(files), tuple(names), tuple(labels))
    files = sorted(p for p in folder.iterdir() if _is_picture(p))
    if not files:
        raise WrongValue(
            "the folder holds no pictures",
            where=str(folder),
            hint=f"Put those of each class into a sub-folder; read are {', '.join(SUFFIXES)}.",
        )
    return Listing(folder, tuple(files), ())


def _pictures(folder: Path) -> list[Path]:
    found = [
        Path(parent) / name
        for parent, _folders, names in os.walk(folder)
        for name in names
        if _is_picture(Path(parent) / name)
    ]
    return sorted(found)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.name[:1] != "." and path.is_file()


@dataclass
class ImageBatches(Sequence[Batch]):
    """Batches of pictures; each is decoded when it is asked for, and so memory is bounded.

    The order is a fixed shuffle of the alphabetical one, so that the first batches (which
    calibrate) have pictures of all classes. Errors on access: ``WrongValue`` naming the file that
    is broken, too large, or of another size than the first.
    """

    listing: Listing
    settings: ImageSettings
    channels: int
    batch_size: int
    cache_bytes: int = CACHE_BYTES
    _order: list[int] = field(init=False, repr=False)
    _shape: tuple[int, ...] = field(init=False, repr=False, default=())
    _cache: dict[int, Tensor] = field(init=False, repr=False, default_factory=dict)
    _cached: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        if self.channels not in MODES:
            raise WrongValue(
                f"the model wants {self.channels} channels; pictures have 1, 3 or 4",
                where="data",
                hint="Give the data as .npz, or as package.module:loader where code is allowed.",
            )
        self._mean, self._std = self.settings.normalisation(self.channels)
        generator = torch.Generator().manual_seed(0)
        count = len(self.listing.files)
        self._order = torch.randperm(count, generator=generator).tolist()

    @property
    def samples(self) -> int:
        return len(self._order)

    @property
    def title(self) -> str:
        """``name, 10 classes``."""
        classes = len(self.listing.classes)
        return (
            f"{self.listing.folder.name}, {classes} classes"
            if classes
            else self.listing.folder.name
        )

    @property
    def empty_classes(self) -> list[str]:
        used = set(self.listing.labels)
        return [name for i, name in enumerate(self.listing.classes) if i not in used]

    def fingerprint(self) -> bytes:
        """What the pictures are, without decoding them: names, sizes, labels, settings."""
        digest = hashlib.blake2b(repr((self.settings, self.channels)).encode(), digest_size=16)
        digest.update(repr((self.batch_size, self.listing.labels)).encode())
        for file in self.listing.files:
            name = file.relative_to(self.listing.folder).as_posix()
            digest.update(f"{name}:{file.stat().st_size}\n".encode())
        return digest.digest()

    def __len__(self) -> int:
        return -(-len(self._order) // self.batch_size)

    @overload
    def __getitem__(self, place: int) -> Batch: ...
    @overload
    def __getitem__(self, place: slice) -> list[Batch]: ...
    def __getitem__(self, place: int | slice) -> Batch | list[Batch]:
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        start = range(len(self))[place] * self.batch_size
        return self.gather(range(start, min(start + self.batch_size, self.samples)))

    def gather(self, rows: Sequence[int]) -> Batch:
        """These samples, in the order of the batches, as one batch."""
        chosen = [self._order[row] for row in rows]
        inputs = torch.stack([self._picture(i) for i in chosen]).float().div_(255)
        if self._mean:
            inputs.sub_(torch.tensor(self._mean).reshape(-1, 1, 1))
            inputs.div_(torch.tensor(self._std).reshape(-1, 1, 1))
        if not self.listing.classes:
            return Batch((inputs,))
        return Batch((inputs,), torch.tensor([self.listing.labels[i] for i in chosen]))

    def _picture(self, index: int) -> Tensor:
        """Channels × height × width, 0 … 255."""
        found = self._cache.get(index)
        if found is None:
            found = decode(self.listing.files[index], self.settings, self.channels)
            shape = tuple(found.shape)
            self._shape = self._shape or shape
            if shape != self._shape:
                a, b = ("×".join(map(str, s[1:])) for s in (shape, self._shape))
                raise WrongValue(
                    f"the picture is {a} pixels, others are {b}",
                    where=str(self.listing.files[index]),
                    hint="Set crop (and resize), which make all pictures one size.",
                )
            if self._cached + found.numel() <= self.cache_bytes:
                self._cached += found.numel()
                self._cache[index] = found
        return found


def decode(file: Path, settings: ImageSettings, channels: int) -> Tensor:
    """A picture as bytes, channels × height × width, resized and cut.

    Errors: ``WrongValue`` naming the file for what is no picture, or claims to be too large.
    """
    from PIL import Image

    try:
        with Image.open(file, formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MOST_PIXELS:
                raise WrongValue(
                    f"the picture has {width}×{height} pixels; allowed: {MOST_PIXELS:,} in all",
                    where=str(file),
                    hint="Make it smaller, or take it out of the folder.",
                )
            fitted = _fit(_with_channels(picture, channels), settings)
            array = np.array(fitted, dtype=np.uint8)
    except WrongValue:
        raise
    except Exception as error:  # each format has errors of its own; the file is at fault
        raise WrongValue(
            f"the picture cannot be read ({type(error).__name__}: {str(error)[:200]})",
            where=str(file),
            hint="Write it anew, or take it out of the folder.",
        ) from error
    tensor = torch.from_numpy(array)
    return (tensor[None] if array.ndim == 2 else tensor.permute(2, 0, 1)).contiguous()


def _with_channels(picture: Image.Image, channels: int) -> Image.Image:
    """Grey, colour, or colour with transparency, whatever the file has."""
    from PIL import Image

    if picture.mode.startswith(("I", "F")):
        # Pillow would cut 16 bits off at 255 instead of scaling them.
        values = np.asarray(picture, dtype=np.float64)
        if picture.mode == "F" or values.max(initial=0) > 65535 or values.min(initial=0) < 0:
            raise ValueError(f"values of type {picture.mode} have no known range")
        picture = Image.fromarray((values / 257).round().astype(np.uint8))
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert(MODES[channels])


def _fit(picture: Image.Image, settings: ImageSettings) -> Image.Image:
    from PIL import Image

    shorter = min(picture.size)
    wanted = settings.resize or shorter
    wanted = max(wanted, settings.crop)
    if wanted != shorter:
        # The longer side is cut to a whole number, as torchvision's Resize does.
        width, height = picture.size
        size = (
            (wanted, int(wanted * height / width))
            if width <= height
            else (int(wanted * width / height), wanted)
        )
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    if settings.crop:
        left, top = (round((side - settings.crop) / 2) for side in picture.size)
        picture = picture.crop((left, top, left + settings.crop, top + settings.crop))
    return picture


def read_folder(path: Path, model: nn.Module, spec: DataSpec) -> DataSet:
    """A project's folder of pictures; the first batches calibrate, all of them evaluate.

    Errors: as ``list_pictures`` and ``ImageBatches``.
    """
    batches = ImageBatches(list_pictures(path), spec.images, model_channels(model), spec.batch_size)
    calibration = [batch.inputs for batch in batches[: spec.calibration_batches]]
    notices = [f"The class {name!r} has no picture." for name in batches.empty_classes]
    return DataSet(calibration, batches, batches.title, notices)
