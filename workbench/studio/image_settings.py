"""How pictures become tensors: settings that a project keeps, and their checks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from workbench.engine.errors import WrongType, WrongValue

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageSettings:
    """How a picture becomes a tensor.

    ``resize``: pixels of the shorter side, 0: as it is; ``crop``: pixels of the square cut out of
    the middle, 0: all of it (a picture that is smaller is enlarged first). ``mean`` and ``std`` of
    each channel, of values 0 … 1; empty: not normalised; None: ImageNet's for three channels, else
    not normalised.
    """

    resize: int = 0
    crop: int = 0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def given(self) -> dict[str, Any]:
        """The fields that are not as they are without being given; sequences as lists."""
        found: dict[str, Any] = {}
        for name in ("resize", "crop"):
            if getattr(self, name):
                found[name] = getattr(self, name)
        for name in ("mean", "std"):
            if getattr(self, name) is not None:
                found[name] = list(getattr(self, name))
        return found

    def normalisation(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, std) for a model of so many channels; both empty: none."""
        if self.mean is None and self.std is None:
            return (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((), ())
        mean, std = self.mean or (), self.std or ()
        mean, std = mean or (0.0,) * len(std), std or (1.0,) * len(mean)
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (0, 1, channels):
                raise WrongValue(
                    f"{name} has {len(values)} values; the model has {channels} channels",
                    where="data",
                    hint="Give one value a channel, one for all, or none.",
                )
        return mean, std


def check_image_settings(settings: ImageSettings, *, where: str, table: str = "data") -> None:
    """Raise ``WrongType`` or ``WrongValue`` naming the fields of ``table`` that are not allowed."""
    problems = []
    for name in ("resize", "crop"):
        size = getattr(settings, name)
        if isinstance(size, bool) or not isinstance(size, int):
            raise WrongType(f"{table}.{name} is {size!r}; it must be an integer", where=where)
        if not 0 <= size <= 8192:
            problems.append(f"{table}.{name} is {size}; allowed: 0 to 8192 pixels")
    for name in ("mean", "std"):
        values = getattr(settings, name)
        if values is None:
            continue
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            raise WrongType(f"{table}.{name} is {values!r}; it must be numbers", where=where)
        if not all(math.isfinite(v) for v in values) or (
            name == "std" and min(values, default=1) <= 0
        ):
            allowed = "numbers above 0" if name == "std" else "finite numbers"
            problems.append(f"{table}.{name} is {list(values)}; allowed: {allowed}")
    if problems:
        raise WrongValue("; ".join(problems), where=where, hint="Correct these fields.")


def folder_text(path: str, settings: ImageSettings) -> str:
    """The Python that makes an ``ImageFolder``: ``ImageFolder('/data/birds', crop=224)``."""
    given = "".join(f", {name}={value!r}" for name, value in settings.given().items())
    return f"ImageFolder({path!r}{given})"
