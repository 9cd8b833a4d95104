"""What a still picture is put together from: boxes, lines, texts and the signs of points."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

DASHES = {"dash": "8 6", "dot": "2 3", "dashdot": "8 4 2 4", "longdash": "12 6"}


class Canvas:
    """SVG elements in the order in which they are drawn."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def sign(self, x: float, y: float, r: float, symbol: str, colour: str) -> None:
        paint = f'fill="none" stroke="{colour}"' if "open" in symbol else f'fill="{colour}"'
        if symbol.startswith("diamond"):
            way = f"M{x:.1f} {y - r:.1f}l{r:.1f} {r:.1f}l{-r:.1f} {r:.1f}l{-r:.1f} {-r:.1f}z"
        elif symbol.startswith("star"):
            turns = np.pi * np.arange(10) / 5
            lengths = r * 1.3 * np.where(np.arange(10) % 2, 0.42, 1.0)
            tips = zip(x + lengths * np.sin(turns), y - lengths * np.cos(turns), strict=True)
            way = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in tips) + "z"
        elif symbol.startswith("square"):
            d = 2 * r
            way = f"M{x - r:.1f} {y - r:.1f}l{d:.1f} 0l0 {d:.1f}l{-d:.1f} 0z"
        elif symbol.startswith("triangle"):
            way = f"M{x:.1f} {y - r:.1f}l{r:.1f} {1.8 * r:.1f}l{-2 * r:.1f} 0z"
        elif symbol.startswith("line"):
            paint = f'stroke="{colour}" stroke-width="2"'
            way = (
                f"M{x - r:.1f} {y:.1f}h{2 * r:.1f}"
                if "ew" in symbol
                else (f"M{x:.1f} {y - r:.1f}v{2 * r:.1f}")
            )
        elif symbol.startswith(("x", "cross")):
            paint = f'stroke="{colour}" stroke-width="2.4"'
            s = 0.75 * r
            way = f"M{x - s:.1f} {y - s:.1f}l{2 * s:.1f} {2 * s:.1f}m0 {-2 * s:.1f}"
            way += f"l{-2 * s:.1f} {2 * s:.1f}"
        else:
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" {paint}/>')
            return
        self.parts.append(f'<path d="{way}" {paint}/>')

    def rect(self, x: float, y: float, w: float, h: float, fill: str, opacity: Any) -> None:
        more = f' opacity="{float(opacity):g}"' if opacity is not None else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" fill="{fill}"{more}/>'
        )

    def line(
        self, a: float, b: float, c: float, d: float, colour: Any,
        line: Mapping[str, Any] = MappingProxyType({}), width: float = 1,
    ) -> None:  # fmt: skip
        self.parts.append(
            f'<path d="M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}" stroke="{safe(colour)}" '
            f'stroke-width="{width:g}"{dashed(line)}/>'
        )

    def text(self, x: float, y: float, text: str, side: str = "middle", more: str = "") -> None:
        lines = re.split(r"<br\s*/?>", text)
        spans = "".join(
            f'<tspan x="{x:.1f}" dy="{13 if i else 0}">{html.escape(plain(line))}</tspan>'
            for i, line in enumerate(lines)
        )
        body = spans if len(lines) > 1 else html.escape(plain(text))
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{side}"{more}>{body}</text>')


def dashed(line: Mapping[str, Any]) -> str:
    dash = DASHES.get(str(line.get("dash")))
    return f' stroke-dasharray="{dash}"' if dash else ""


def plain(text: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", text))


def safe(colour: Any) -> str:
    return html.escape(str(colour), quote=True)


def scale_colours(scale: Any, ground: str) -> list[tuple[int, int, int]]:
    """256 colours of a scale of (place, colour), on ``ground`` where they let it through."""
    stops = [(float(place), _rgb(str(colour), ground)) for place, colour in scale]
    places = np.linspace(0.0, 1.0, 256)
    parts = [
        np.interp(places, [place for place, _ in stops], [colour[i] for _, colour in stops])
        for i in range(3)
    ]
    return [(round(r), round(g), round(b)) for r, g, b in zip(*parts, strict=True)]


def _rgb(colour: str, ground: str) -> list[float]:
    if colour.startswith("#"):
        return [float(part) for part in bytes.fromhex(colour[1:7])]
    red, green, blue, alpha = [*(float(n) for n in re.findall(r"[\d.]+", colour)), 1.0][:4]
    behind = _rgb(ground, ground)
    mixed = zip((red, green, blue), behind, strict=True)
    return [alpha * front + (1 - alpha) * back for front, back in mixed]
