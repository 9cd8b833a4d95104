"""A figure as a still picture (SVG): for a page that runs no script, such as a saved notebook.

Bars, lines, points and heat maps on any number of axes, with legend, lines and texts; hatches,
hover texts and arrows are of the live chart only. Some 5 to 40 kB a chart; nothing is loaded.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from workbench.charts.drawn import listed
from workbench.charts.picture_axes import Axis
from workbench.charts.picture_canvas import Canvas, dashed, plain, safe, scale_colours
from workbench.charts.theme import FONT, MARGIN, PAPER, palette, template

MOST_POINTS = 1500
HEIGHT = 280
SMALL = 11
BARGAP = 0.18


def figure_svg(figure: go.Figure, *, width: int = 900, dark: bool = False, label: str = "") -> str:
    """``figure`` as an SVG document of ``width`` pixels; ``label`` says what it shows."""
    return _Picture(figure, width, dark).draw(label)


class _Picture(Canvas):
    def __init__(self, figure: go.Figure, width: int, dark: bool) -> None:
        super().__init__()
        content = figure.to_plotly_json()
        self.layout: dict[str, Any] = content["layout"]
        self.traces = [t for t in content["data"] if t.get("visible", True) is True]
        self.colours = palette(dark)
        way = template(dark).layout.colorway
        for i, trace in enumerate(self.traces):
            named = [(trace.get(part) or {}).get("color") for part in ("marker", "line")]
            first = next((colour for colour in named if isinstance(colour, str)), None)
            trace["own"] = first or way[i % len(way)]
        self.ground = PAPER[dark]
        self.width = width
        self.height = int(self.layout.get("height") or HEIGHT)
        self.margin = {**MARGIN, **self.layout.get("margin", {})}
        self.axes: dict[str, Axis] = {}
        for trace in self.traces:
            for letter in "xy":
                name = trace.get(f"{letter}axis") or letter
                if name not in self.axes:
                    self.axes[name] = self._axis(name)
        for name in ("x", "y"):
            if name not in self.axes:
                self.axes[name] = self._axis(name)

    # -- axes ---------------------------------------------------------------------------------

    def _spec(self, name: str) -> dict[str, Any]:
        return dict(self.layout.get(f"{name[0]}axis{name[1:]}") or {})

    def _axis(self, name: str) -> Axis:
        letter, spec = name[0], self._spec(name)
        other = self._spec(spec.get("overlaying") or spec.get("matches") or name)
        low, high = spec.get("domain") or other.get("domain") or (0.0, 1.0)
        if letter == "x":
            room = self.width - self.margin["l"] - self.margin["r"]
            ends = (self.margin["l"] + low * room, self.margin["l"] + high * room)
        else:
            room = self.height - self.margin["t"] - self.margin["b"]
            base = self.height - self.margin["b"]
            ends = (base - low * room, base - high * room)
        values: list[Any] = []
        whole = apart = False
        shared = {name, spec.get("matches")}
        for trace in self.traces:
            if (trace.get(f"{letter}axis") or letter) not in shared:
                continue
            values += self._values(trace, letter)
            if trace["type"] == "bar":
                along = letter == ("x" if trace.get("orientation") == "h" else "y")
                whole, apart = whole or along, apart or not along
            apart = apart or trace["type"] == "heatmap"
        if spec.get("matches"):
            shared_keys = ("type", "range", "autorange", "rangemode")
            spec = {**{key: other[key] for key in shared_keys if key in other}, **spec}
        return Axis(spec, values, ends, whole=whole, apart=apart)

    def _values(self, trace: Mapping[str, Any], letter: str) -> list[Any]:
        given = listed(trace.get(letter))
        if trace["type"] == "heatmap" and not given:
            rows = listed(trace.get("z"))
            count = len(rows) if letter == "y" else max((len(listed(r)) for r in rows), default=0)
            given = list(range(count))
        elif not given:
            given = list(range(len(listed(trace.get("y" if letter == "x" else "x")))))
        if trace["type"] == "bar" and trace.get("base") is not None:
            along = letter == ("x" if trace.get("orientation") == "h" else "y")
            if along:
                starts = _many(trace["base"], len(given))
                ends = [None if v is None else s + v for s, v in zip(starts, given, strict=True)]
                return [*starts, *ends]
        if trace["type"] == "bar" and self.layout.get("barmode") == "stack":
            return [*given, *self._stacked(trace, letter)]
        return [v for v in given if v is not None]

    def _stacked(self, trace: Mapping[str, Any], letter: str) -> list[Any]:
        if letter != ("x" if trace.get("orientation") == "h" else "y"):
            return []
        bars = [listed(t.get(letter)) for t in self.traces if t["type"] == "bar"]
        return [sum(v or 0.0 for v in column) for column in itertools.zip_longest(*bars)]

    # -- the whole -----------------------------------------------------------------------------

    def draw(self, label: str) -> str:
        for name in self.axes:
            self._draw_axis(name)
        stacks: dict[Any, float] = {}
        for shape in self.layout.get("shapes") or ():
            if shape.get("layer") == "below":
                self._shape(shape)
        for trace in self.traces:
            x, y = (self.axes[trace.get(f"{c}axis") or c] for c in "xy")
            if trace["type"] == "bar":
                self._bars(trace, x, y, stacks)
            elif trace["type"] == "heatmap":
                self._heat(trace, x, y)
            elif trace["type"] in ("scatter", "scattergl"):
                self._scatter(trace, x, y)
        for shape in self.layout.get("shapes") or ():
            if shape.get("layer") != "below":
                self._shape(shape)
        for note in self.layout.get("annotations") or ():
            self._note(note)
        self._legend()
        title = f"<title>{html.escape(label)}</title>" if label else ""
        ground = safe(self.layout.get("paper_bgcolor") or "none")
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" style="max-width:100%;height:auto;background:{ground}" '
            f'role="img" font-family="{html.escape(FONT)}" font-size="{SMALL}" '
            f'fill="{self.colours.muted}">{title}{"".join(self.parts)}</svg>'
        )

    def _draw_axis(self, name: str) -> None:
        axis = self.axes[name]
        if axis.spec.get("visible") is False:
            return
        across = "y" if name[0] == "x" else "x"
        anchor = self.axes.get(axis.spec.get("anchor") or across) or self.axes[across]
        near, far = anchor.pixels
        right = axis.spec.get("side") == "right"
        ticks = axis.ticks()
        grid = axis.spec.get("showgrid", True) and axis.kind != "category"
        room = abs(axis.pixels[1] - axis.pixels[0]) / max(len(ticks), 1)
        tilt = name[0] == "x" and max((len(t) for _, t in ticks), default=0) * 6 > room
        for place, text in ticks:
            if name[0] == "x":
                if grid:
                    self.line(place, near, place, far, self.colours.grid)
                turn = f' transform="rotate(-40 {place:.1f} {near + 12:.1f})"' if tilt else ""
                self.text(place, near + 14, text, "end" if tilt else "middle", turn)
            else:
                if grid:
                    self.line(near, place, far, place, self.colours.grid)
                self.text((far + 6) if right else near - 6, place + 4, text,
                           "start" if right else "end")  # fmt: skip
        title = (axis.spec.get("title") or {}).get("text")
        if title:
            middle = sum(axis.pixels) / 2
            if name[0] == "x":
                self.text(middle, min(near + 32, self.height - 4), title)
            else:
                side = self.width - 6 if right else max(near - self.margin["l"] + 12, 12)
                turn = f' transform="rotate(-90 {side:.1f} {middle:.1f})"'
                self.text(side, middle, title, "middle", turn)

    # -- traces --------------------------------------------------------------------------------

    def _bars(self, trace: Mapping[str, Any], x: Axis, y: Axis, stacks: dict[Any, float]) -> None:
        flat = trace.get("orientation") == "h"
        places, lengths = (listed(trace.get(c)) for c in ("yx" if flat else "xy"))
        across, along = (y, x) if flat else (x, y)
        places = places or list(range(len(lengths)))
        count = len(places)
        bases = _many(trace.get("base"), count)
        widths = _many(trace.get("width"), count)
        room = (1 - float(self.layout.get("bargap", BARGAP))) * across.unit
        shift = 0.0
        if self.layout.get("barmode") == "group":
            side_by_side = [t for t in self.traces if t["type"] == "bar"]
            room /= len(side_by_side)
            index = next(i for i, other in enumerate(side_by_side) if other is trace)
            shift = (index - (len(side_by_side) - 1) / 2) * room
        fills = self._fills(trace, count)
        floor = along.low if along.kind == "log" else 0.0
        for i, (place, length) in enumerate(zip(places, lengths, strict=False)):
            middle = across.place(place)
            if middle is None or length is None:
                continue
            middle += shift
            start = bases[i] or 0.0
            if self.layout.get("barmode") == "stack":
                start = stacks.get(place, 0.0)
                stacks[place] = start + length
            top = along.place(start + length)
            bottom = along.place(start) if start or along.kind != "log" else floor
            if top is None:
                continue
            half = (room if widths[i] is None else widths[i]) / 2
            a, b = sorted((across.at(middle - half), across.at(middle + half)))
            c, d = sorted((along.at(floor if bottom is None else bottom), along.at(top)))
            box = (c, a, d - c, b - a) if flat else (a, c, b - a, d - c)
            self.rect(*box, fills[i], trace.get("opacity"))

    def _scatter(self, trace: Mapping[str, Any], x: Axis, y: Axis) -> None:
        ys = listed(trace.get("y"))
        xs = listed(trace.get("x")) or list(range(len(ys)))
        points = [(x.pixel(a), y.pixel(b)) for a, b in zip(xs, ys, strict=False)]
        marker, line = trace.get("marker") or {}, trace.get("line") or {}
        few = len(points) < 20
        more = f' opacity="{float(trace["opacity"]):g}"' if trace.get("opacity") else ""
        self.parts.append(f"<g{more}>")
        mode = str(trace.get("mode") or ("lines+markers" if few else "lines"))
        # Of very many points some are left out: a line keeps its course.
        every = max(1, len(points) // MOST_POINTS)
        if "lines" in mode and line.get("width") != 0:
            for run in _runs(points[::every]):
                path = _steps(run, str(line.get("shape") or "linear"))
                way = "L".join(f"{a:.1f} {b:.1f}" for a, b in path)
                self.parts.append(
                    f'<path d="M{way}" fill="none" stroke="{safe(trace["own"])}" '
                    f'stroke-width="{float(line.get("width") or 2):g}"{dashed(line)}/>'
                )
        if "markers" in mode:
            fills = self._fills(trace, len(points))
            sizes = _many(marker.get("size"), len(points))
            symbols = _many(marker.get("symbol"), len(points))
            for i in range(0, len(points), every):
                a, b = points[i]
                if a is not None and b is not None:
                    self.sign(a, b, float(sizes[i] or 6) / 2, str(symbols[i] or ""), fills[i])
        if "text" in mode:
            for (a, b), text in zip(points, _many(trace.get("text"), len(points)), strict=True):
                if a is not None and b is not None and text:
                    self.text(a, b - 8, str(text))
        self.parts.append("</g>")

    def _heat(self, trace: Mapping[str, Any], x: Axis, y: Axis) -> None:
        rows = [[np.nan if v is None else v for v in listed(r)] for r in listed(trace.get("z"))]
        wide = max((len(row) for row in rows), default=0)
        if not wide:
            return
        grid = np.array([row + [np.nan] * (wide - len(row)) for row in rows], dtype=np.float64)
        known = grid[np.isfinite(grid)]
        low = trace.get("zmin", known.min() if known.size else 0.0)
        high = trace.get("zmax", known.max() if known.size else 1.0)
        levels = np.clip((grid - low) / ((high - low) or 1.0), 0, 1)
        scale = np.array(scale_colours(trace["colorscale"], self.ground), dtype=np.uint8)
        pixels = np.zeros((*grid.shape, 4), dtype=np.uint8)
        shown = np.isfinite(grid)
        pixels[shown, :3] = scale[(levels[shown] * (len(scale) - 1)).astype(int)]
        pixels[shown, 3] = 255
        columns, lines = (self._values(trace, c) for c in "xy")
        left, right = (x.place(v) or 0.0 for v in (columns[0], columns[-1]))
        first, last = (y.place(v) or 0.0 for v in (lines[0], lines[-1]))
        a, b = x.at(left - 0.5), x.at(right + 0.5)
        c, d = y.at(first - 0.5), y.at(last + 0.5)
        image = pixels if c < d else pixels[::-1]
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode()
        self.parts.append(
            f'<image x="{min(a, b):.1f}" y="{min(c, d):.1f}" width="{abs(b - a):.1f}" '
            f'height="{abs(d - c):.1f}" preserveAspectRatio="none" '
            f'style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>'
        )

    # -- over the traces --------------------------------------------------------------------------

    def _fills(self, trace: Mapping[str, Any], count: int) -> list[str]:
        marker = trace.get("marker") or {}
        colours = _many(marker.get("color"), count)
        if colours and isinstance(colours[0], int | float) and marker.get("colorscale"):
            low, high = float(marker.get("cmin", 0)), float(marker.get("cmax", 1))
            scale = scale_colours(marker["colorscale"], self.ground)
            levels = [min(max((float(c) - low) / ((high - low) or 1.0), 0), 1) for c in colours]
            found = [scale[int(level * (len(scale) - 1))] for level in levels]
            return [f"rgb({r},{g},{b})" for r, g, b in found]
        return [safe(c or trace["own"]) for c in colours]

    def _spot(self, ref: Any, letter: str, value: Any) -> float | None:
        """A pixel from a value on an axis, on the paper or in an axis' domain."""
        name, _, domain = str(ref or letter).partition(" ")
        if name == "paper":
            ends = self.margin["l"], self.width - self.margin["r"]
            if letter == "y":
                ends = self.height - self.margin["b"], self.margin["t"]
        elif domain:
            ends = self.axes[name].pixels if name in self.axes else (0.0, 0.0)
        else:
            return self.axes[name].pixel(value) if name in self.axes else None
        return float(ends[0] + float(value) * (ends[1] - ends[0]))

    def _shape(self, shape: Mapping[str, Any]) -> None:
        line = shape.get("line") or {}
        spots = [
            self._spot(shape.get(f"{key[0]}ref"), key[0], shape.get(key))
            for key in ("x0", "y0", "x1", "y1")
        ]
        if any(spot is None for spot in spots):
            return
        a, b, c, d = (float(spot) for spot in spots if spot is not None)
        if shape.get("type") == "rect":
            fill = safe(shape.get("fillcolor") or "none")
            self.rect(min(a, c), min(b, d), abs(c - a), abs(d - b), fill, shape.get("opacity"))
        elif shape.get("type", "line") == "line":
            self.line(a, b, c, d, line.get("color") or self.colours.text, line)

    def _note(self, note: Mapping[str, Any]) -> None:
        spots = []
        for letter in "xy":
            ref, value = note.get(f"{letter}ref"), note.get(letter)
            axis = self.axes.get(str(ref or letter))
            # Unlike a shape, a text on a logarithmic axis is placed by its power.
            logged = axis is not None and axis.kind == "log"
            spot = axis.at(float(value)) if logged else self._spot(ref, letter, value)  # type: ignore[union-attr, arg-type]
            spots.append(spot)
        if note.get("visible") is False or spots[0] is None or spots[1] is None:
            return
        x, y = spots[0] + float(note.get("xshift") or 0), spots[1] - float(note.get("yshift") or 0)
        more = 13 * (len(re.split(r"<br\s*/?>", str(note.get("text") or ""))) - 1)
        y += {"top": 12.0, "bottom": -4.0 - more}.get(str(note.get("yanchor")), 4.0 - more / 2)
        side = {"left": "start", "right": "end"}.get(str(note.get("xanchor")), "middle")
        colour = (note.get("font") or {}).get("color") or self.colours.text
        self.text(x, y, str(note.get("text") or ""), side, f' fill="{safe(colour)}"')

    def _legend(self) -> None:
        named = [
            t
            for t in self.traces
            if t.get("name") and t.get("showlegend") is not False and t["type"] != "heatmap"
        ]
        wanted = self.layout.get("showlegend")
        if wanted is False or not named or (wanted is None and len(named) < 2):
            return
        x = float(self.axes["x"].pixels[0])
        y = max(12.0, self.margin["t"] - 12.0)
        for trace in named:
            marker, line = trace.get("marker") or {}, trace.get("line") or {}
            name = plain(str(trace["name"]))
            if trace["type"] == "bar":
                self.rect(x, y - 9, 10, 10, self._fills(trace, 1)[0], None)
            elif "markers" in str(trace.get("mode") or ""):
                symbol = _many(marker.get("symbol"), 1)[0]
                self.sign(x + 5, y - 4, 4.5, str(symbol or ""), self._fills(trace, 1)[0])
            else:
                self.line(x, y - 4, x + 14, y - 4, trace["own"], line, 2)
            self.text(x + 17, y, name, "start")
            x += 32 + 6.2 * len(name)


def _many(value: Any, count: int) -> list[Any]:
    """One value for each of ``count`` points."""
    if value is None or isinstance(value, str | int | float):
        return [value] * count
    found = listed(value)
    return (found + [None] * count)[:count]


def _runs(
    points: list[tuple[float | None, float | None]],
) -> Iterator[list[tuple[float, float]]]:
    run: list[tuple[float, float]] = []
    for a, b in points:
        if a is not None and b is not None:
            run.append((a, b))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _steps(run: list[tuple[float, float]], shape: str) -> list[tuple[float, float]]:
    if shape not in ("hv", "vh", "hvh"):
        return run
    found = run[:1]
    for (a, b), (c, d) in itertools.pairwise(run):
        middle = (a + c) / 2
        corners = {"hv": [(c, b)], "vh": [(a, d)], "hvh": [(middle, b), (middle, d)]}[shape]
        found += [*corners, (c, d)]
    return found
