"""What an activation algorithm finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ActivationScale:
    """``scale`` is a float32 value; ``offset`` is added after scaling (the code of real 0)."""

    scale: float
    offset: int
