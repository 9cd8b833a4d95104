"""The one look of all charts: a light and a dark template, and what each state is drawn with."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

# Roboto would be the page's own files, eight of them, for the signs that a system's font lacks.
FONT = 'system-ui, -apple-system, "Segoe UI", "Noto Sans", "Helvetica Neue", sans-serif'
PAPER = {False: "#ffffff", True: "#14191f"}
"""The ground of a page, light and dark."""

CLEAR = "rgba(0,0,0,0)"


@dataclass(frozen=True)
class Palette:
    """Colours of one scheme; every state also has a pattern (``PATTERNS``)."""

    accent: str
    text: str
    muted: str
    grid: str
    hover: str
    quantised: str
    worse: str
    skipped: str
    ineligible: str
    pruned: str
    pinned: str
    pinned_float: str
    float: str
    good: str
    bad: str


LIGHT = Palette(
    accent="#0b6e8f",
    text="#1d2530",
    muted="#66717f",
    grid="rgba(40,55,75,0.12)",
    hover="#ffffff",
    quantised="#0b6e8f",
    worse="#c8372d",
    skipped="#a9b3be",
    ineligible="#dbe0e6",
    pruned="#7a5ea8",
    pinned="#a8690a",
    pinned_float="#d8bd8c",
    float="#66717f",
    good="#2e7d4f",
    bad="#c8372d",
)
DARK = Palette(
    accent="#4fb3d4",
    text="#e3e8ee",
    muted="#97a3b1",
    grid="rgba(200,215,235,0.14)",
    hover="#232a33",
    quantised="#4fb3d4",
    worse="#ff7a6b",
    skipped="#6b7684",
    ineligible="#3d4650",
    pruned="#b79be0",
    pinned="#e3a83f",
    pinned_float="#7d683d",
    float="#97a3b1",
    good="#67c48d",
    bad="#ff7a6b",
)

# Colour alone never carries a meaning: each state has a hatch too ("" is a plain fill).
PATTERNS: dict[str, str] = {
    "quantised": "",
    "worse": "",
    "skipped": "/",
    "ineligible": "x",
    "pruned": ".",
    "pinned": "+",
    "pinned_float": "|",
    "float": "-",
    "open": "\\",
}


def hatch(state: str, dark: bool) -> dict[str, object]:
    """Plotly's ``marker.pattern`` for a state: drawn over the fill, not instead of it."""
    return {
        "shape": PATTERNS[state],
        "fillmode": "overlay",
        "fgcolor": palette(dark).text,
        "fgopacity": 0.45,
        "size": 7,
        "solidity": 0.18,
    }


# plotly writes powers of ten a quarter larger than it is told.
POWERS: dict[str, object] = {"exponentformat": "power", "dtick": 1, "tickfont": {"size": 9}}
"""Of a logarithmic axis whose ticks are powers of ten."""

MARGIN = {"l": 56, "r": 16, "t": 12, "b": 36}


def palette(dark: bool) -> Palette:
    return DARK if dark else LIGHT


@functools.cache
def template(dark: bool) -> go.layout.Template:
    """Layout defaults of one scheme: transparent, system fonts, explicit margins, calm axes."""
    colours = palette(dark)
    small = {"color": colours.muted, "size": 11}
    axis = {
        "gridcolor": colours.grid,
        "linecolor": colours.grid,
        "zeroline": False,
        "ticks": "",
        "automargin": False,
        "tickfont": small,
        "title": {"font": {"color": colours.muted, "size": 12}, "standoff": 6},
    }
    return go.layout.Template(
        layout={
            "paper_bgcolor": CLEAR,
            "plot_bgcolor": CLEAR,
            "font": {"family": FONT, "size": 12, "color": colours.text},
            "margin": dict(MARGIN),
            "colorway": [colours.accent, colours.muted, colours.pruned, colours.good, colours.bad],
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {
                "bgcolor": colours.hover,
                "bordercolor": colours.grid,
                "font": {"family": FONT, "size": 12, "color": colours.text},
                "align": "left",
                "namelength": -1,
            },
            "legend": {
                "orientation": "h",
                "x": 0.0,
                "xanchor": "left",
                "y": 1.0,
                "yanchor": "bottom",
                "bgcolor": CLEAR,
                "font": small,
                "itemclick": False,
                "itemdoubleclick": False,
            },
            "modebar": {
                "bgcolor": CLEAR,
                "color": colours.muted,
                "activecolor": colours.accent,
            },
            "bargap": 0.18,
        },
        data={"heatmap": [{"colorbar": {"tickfont": small, "title": {"font": small}}}]},
    )


def base_figure(
    *, dark: bool, height: int | None = None, uirevision: object = None, **layout: object
) -> go.Figure:
    """An empty figure in the common look; margins are on the figure too.

    Panel's first paint does not honour the template's margins, so they are set twice on purpose.
    ``layout``: whatever else is known already. To set it later takes plotly four times as long.
    """
    given = {"height": height, "uirevision": uirevision}
    layout |= {key: value for key, value in given.items() if value is not None}
    return go.Figure(layout={"template": template(dark), "margin": MARGIN, **layout})


def note(figure: go.Figure, text: str, *, dark: bool) -> None:
    """Write ``text`` in the middle of an otherwise empty plot."""
    figure.add_annotation(
        text=text,
        xref="paper",
        yref="paper",
        x=0.5,
        y=0.5,
        showarrow=False,
        font={"size": 14, "color": palette(dark).muted},
    )


def with_gaps(values: npt.NDArray[np.float64]) -> npt.NDArray[np.object_]:
    """None in place of NaN: in two dimensions a widget sends text, and JSON has no NaN."""
    found = values.astype(object)
    found[np.isnan(values)] = None
    return found


def log_scale(dark: bool) -> list[list[object]]:
    """Continuous colours from calm (small error) to alarming (large error), for both schemes."""
    colours = palette(dark)
    middle = "#e9b44c" if not dark else "#d9a441"
    calm = "#dfe9ee" if not dark else "#263844"
    return [[0.0, calm], [0.35, colours.accent], [0.7, middle], [1.0, colours.worse]]
