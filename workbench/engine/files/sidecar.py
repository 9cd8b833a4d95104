"""What we keep beside a file of the reference's formats, in ``<file>.workbench.json``."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.engine.errors import WrongValue
from workbench.engine.files.atomic import write_text
from workbench.engine.files.reading import read_text


@dataclass(frozen=True)
class TensorRange:
    """Smallest and largest value a tensor took during calibration, clipping applied."""

    low: float
    high: float


@dataclass(frozen=True)
class Sidecar:
    """``compat``, ranges of tensors and options of the flow that wrote the main file.

    Keys of ``ranges``: ``"<layer>"`` is the layer's output, ``"<scope>#add0"`` the output of that
    addition or concatenation, ``"input:<name>"`` a graph input.
    """

    compat: bool = False
    ranges: Mapping[str, TensorRange] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def sidecar_path(main_file: str | os.PathLike[str]) -> Path:
    return Path(f"{os.fspath(main_file)}.workbench.json")


def read_sidecar(main_file: str | os.PathLike[str]) -> Sidecar:
    """The sidecar of ``main_file``; the defaults when there is none."""
    path = sidecar_path(main_file)
    if not path.exists():
        return Sidecar()
    text = read_text(path, what="sidecar")
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise _wrong(path, f"not JSON: {error}") from None
    if not isinstance(data, dict):
        raise _wrong(path, "the top level must be an object")
    compat = data.get("compat", False)
    ranges = data.get("ranges", {})
    options = data.get("options", {})
    if not isinstance(compat, bool):
        raise _wrong(path, f"compat is {compat!r}; allowed: true, false")
    if not isinstance(ranges, dict) or not isinstance(options, dict):
        raise _wrong(path, "ranges and options must be objects")
    return Sidecar(
        compat=compat,
        ranges={key: _read_range(path, key, value) for key, value in ranges.items()},
        options=options,
    )


def write_sidecar(main_file: str | os.PathLike[str], sidecar: Sidecar) -> None:
    """Write the sidecar of ``main_file`` atomically, keys in a stable order."""
    data = {
        "compat": sidecar.compat,
        "options": dict(sorted(sidecar.options.items())),
        "ranges": {key: [value.low, value.high] for key, value in sidecar.ranges.items()},
    }
    write_text(sidecar_path(main_file), json.dumps(data, indent=1, allow_nan=False) + "\n")


def _read_range(path: Path, key: str, value: object) -> TensorRange:
    numbers = value if isinstance(value, list) else []
    if (
        len(numbers) != 2
        or any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers)
        or not all(math.isfinite(n) for n in numbers)
        or numbers[0] > numbers[1]
    ):
        raise _wrong(
            path, f"ranges[{key!r}] is {value!r}; allowed: [low, high], finite, low <= high"
        )
    return TensorRange(float(numbers[0]), float(numbers[1]))


def _wrong(path: Path, message: str) -> WrongValue:
    return WrongValue(message, where=str(path), hint="Calibrate again to write it anew.")
