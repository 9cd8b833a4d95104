"""Folders of small pictures, a sub-folder for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def make_pictures(
    folder: Path, *, classes: int = 3, each: int = 4, size: int = 8, mode: str = "RGB"
) -> Path:
    """``class0`` … with noise of their own brightness; returns ``folder``."""
    generator = np.random.default_rng(7)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
        for i in range(each):
            low = 60 * label
            values = generator.integers(low, low + 60, (size, size, *channels), dtype=np.uint8)
            Image.fromarray(values).save(folder / f"class{label}" / f"{i:03}.png")
    return folder
