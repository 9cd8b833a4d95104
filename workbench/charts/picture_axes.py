"""Where a value of a figure stands in its picture: linear, logarithmic and named axes; ticks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

MOST_TICKS = 60
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Axis:
    """One axis of a figure between two pixels; ``values`` are all that it has to show.

    ``whole``: bars begin on it, so that a linear one reaches down to 0. ``apart``: bars stand on
    it, so that half a place is free at either end.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        values: Sequence[Any],
        pixels: tuple[float, float],
        *,
        whole: bool = False,
        apart: bool = False,
    ) -> None:
        self.spec = spec
        self.pixels = pixels
        self.names: dict[str, int] = {}
        self.kind = str(spec.get("type") or "")
        if self.kind not in ("linear", "log", "category"):
            self.kind = "category" if any(isinstance(v, str) for v in values) else "linear"
        if self.kind == "category":
            for value in values:
                self.names.setdefault(str(value), len(self.names))
        places = sorted({p for v in values if (p := self.place(v)) is not None})
        steps = [b - a for a, b in itertools.pairwise(places)]
        self.unit = 1.0 if self.kind == "category" else min(steps, default=1.0)
        """How far apart neighbours stand: the room of a bar."""
        self.counted = bool(places) and all(p == round(p) for p in places)
        self.low, self.high = self._range(places, whole, apart)

    def place(self, value: Any) -> float | None:
        """The place of a value on the axis' own scale; None where it has none."""
        if self.kind == "category":
            if isinstance(value, str):
                found = self.names.get(value)
                return None if found is None else float(found)
            return float(value) if value is not None else None
        try:
            number = float(value)
        except (TypeError, ValueError):
            return None
        if self.kind == "log":
            return math.log10(number) if number > 0 else None
        return number if math.isfinite(number) else None

    def at(self, place: float) -> float:
        """The pixel of a place, kept near the picture."""
        start, end = self.pixels
        share = (place - self.low) / (self.high - self.low)
        return start + min(max(share, -2.0), 3.0) * (end - start)

    def pixel(self, value: Any) -> float | None:
        place = self.place(value)
        return None if place is None else self.at(place)

    def ticks(self) -> list[tuple[float, str]]:
        """(pixel, text) of each tick that is inside."""
        if self.spec.get("showticklabels") is False or self.spec.get("visible") is False:
            return []
        shown = self.spec.get("tickvals")
        if shown is not None and len(shown):
            texts = self.spec.get("ticktext")
            words = [self._text(v) for v in shown] if texts is None else [str(t) for t in texts]
            pairs = [(self.place(v), text) for v, text in zip(shown, words, strict=False)]
        elif self.kind == "category":
            every = max(1, math.ceil(len(self.names) / MOST_TICKS))
            pairs = [(float(i), name) for name, i in self.names.items() if i % every == 0]
        elif self.kind == "log" and abs(self.high - self.low) >= 2:
            first, last = sorted((self.low, self.high))
            every = max(1, round((last - first) / 6))
            powers = range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1, every)
            end = self.spec.get("ticksuffix") or ""
            pairs = [(float(n), f"10{str(n).translate(RAISED)}{end}") for n in powers]
        else:
            pairs = [(self.place(v), self._text(v)) for v in self._round_values()]
        first, last = sorted((self.low, self.high))
        slack = 1e-6 * (last - first)
        return [
            (self.at(place), text)
            for place, text in pairs
            if place is not None and first - slack <= place <= last + slack
        ]

    def _round_values(self) -> list[float]:
        first, last = sorted((self.low, self.high))
        if self.kind == "log":
            powers = range(math.floor(first) - 1, math.ceil(last) + 1)
            return [n * 10.0**power for power in powers for n in (1, 2, 5)]
        (start, end), room = self.pixels, 90 if self.pixels[1] > self.pixels[0] else 34
        wanted = max(2, round(abs(end - start) / room))
        rough = (last - first) / wanted
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(n * power for n in (1, 2, 5, 10) if n * power >= rough * 0.999)
        step = max(step, 1.0) if self.counted else step
        numbers = range(math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9) + 1)
        return [n * step for n in numbers]

    def _text(self, value: float) -> str:
        form = str(self.spec.get("tickformat") or "").replace("~", "")
        try:
            text = format(value, form) if form else f"{value:.6g}"
        except (TypeError, ValueError):
            text = f"{value:.4g}" if isinstance(value, int | float) else str(value)
        prefix, suffix = (self.spec.get(key) or "" for key in ("tickprefix", "ticksuffix"))
        return f"{prefix}{text}{suffix}"

    def _range(self, places: Sequence[float], whole: bool, apart: bool) -> tuple[float, float]:
        given = self.spec.get("range")
        if given is not None and None not in given:
            low, high = float(given[0]), float(given[1])
        else:
            low, high = (places[0], places[-1]) if places else (0.0, 1.0)
            if self.kind == "category" or apart:
                low, high = low - self.unit / 2, high + self.unit / 2
            else:
                if self.kind == "linear" and (whole or self.spec.get("rangemode") == "tozero"):
                    low, high = min(low, 0.0), max(high, 0.0)
                pad = 0.05 * (high - low)
                low, high = (
                    (low if low == 0 and whole and self.kind == "linear" else low - pad),
                    high + pad,
                )
            if self.spec.get("autorange") == "reversed":
                low, high = high, low
        return (low, high) if low != high else (low - 0.5, high + 0.5)
