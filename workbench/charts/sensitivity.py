"""How much each layer suffers when it is quantised: one bar a layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from workbench.charts.drawn import exact_values
from workbench.charts.spoken import said
from workbench.charts.text import N_, _
from workbench.charts.theme import PATTERNS, POWERS, base_figure, hatch, note, palette

Order = Literal["execution", "sorted"]
Floats = npt.NDArray[np.float64]

ROOM = 150  # letters that fit side by side under a chart as wide as a page
STAGE_STRIP_FROM = 300  # above this many layers single bars are thinner than a few pixels


@dataclass(frozen=True)
class Quantity:
    """One column of the layer table as a chart shows it.

    ``worse`` tells in which direction a layer is worse (+1 higher, −1 lower, 0 neither);
    ``threshold`` turns the similarity threshold into the axis' unit (None: no line).
    """

    column: str
    title: str
    log: bool
    worse: int
    threshold: Callable[[float], float] | None = None


QUANTITIES: dict[str, Quantity] = {
    "error": Quantity("error", N_("error 1 − cos"), True, 1, lambda cosine: 1.0 - cosine),
    "cosine": Quantity("cosine", N_("cosine similarity"), False, -1, lambda cosine: cosine),
    "sqnr": Quantity("sqnr", "SQNR (dB)", False, -1),
    "accumulated_error": Quantity("accumulated_error", N_("accumulated error 1 − cos"), True, 1),
    "weight_range": Quantity("weight_range", N_("weight range max ÷ min by channel"), True, 0),
    "prune_sensitivity": Quantity("prune_sensitivity", N_("prune sensitivity"), True, 1),
    "macs": Quantity("macs", N_("multiply-accumulates"), True, 0),
    "parameters": Quantity("parameters", N_("parameters"), True, 0),
}

STATES = ("quantised", "worse", "skipped", "ineligible", "pinned", "pinned_float")
STATE_TITLES = {
    "quantised": N_("quantised"),
    "worse": N_("quantised, worse than the line"),
    "skipped": N_("stays float"),
    "ineligible": N_("cannot be quantised"),
    "pinned": N_("pinned, quantised now"),
    "pinned_float": N_("pinned, float now"),
}


def quantity_values(layers: pd.DataFrame, quantity: str) -> Floats:
    """The quantity of every layer as float64, NaN where it is not measured."""
    column = QUANTITIES[quantity].column
    return np.asarray(layers[column], dtype=np.float64)


def worst_first(layers: pd.DataFrame, quantity: str = "error") -> npt.NDArray[np.int64]:
    """Row positions from worst to best; rows without a measurement come last, in order."""
    values = quantity_values(layers, quantity)
    sign = -1.0 if QUANTITIES[quantity].worse >= 0 else 1.0
    key = np.where(np.isnan(values), np.inf, sign * values)
    return np.argsort(key, kind="stable").astype(np.int64)


def display_order(layers: pd.DataFrame, quantity: str, order: Order) -> npt.NDArray[np.int64]:
    """Row positions in the order in which chart and table show them."""
    if order == "sorted":
        return worst_first(layers, quantity)
    return np.arange(len(layers), dtype=np.int64)


def below_threshold(layers: pd.DataFrame, threshold: float) -> list[str]:
    """Quantised layers whose own cosine similarity is below ``threshold``."""
    cosine = quantity_values(layers, "cosine")
    mask = np.asarray(layers["quant_enable"], dtype=bool) & (cosine < threshold)
    return [str(name) for name in np.asarray(layers["name"], dtype=object)[mask]]


def bar_states(layers: pd.DataFrame, threshold: float) -> list[str]:
    """State of each layer as drawn: the table's state, ``worse`` beyond the threshold, or pinned.

    A pinned layer is drawn by what it is now, which a search changes to what it is held at.
    """
    cosine = quantity_values(layers, "cosine")
    states = [str(state) for state in layers["state"]]
    pins = layers["pin"].tolist() if "pin" in layers else [""] * len(states)
    pinned = {"quantised": "pinned", "skipped": "pinned_float"}
    return [
        pinned.get(state, state)
        if pin
        else ("worse" if state == "quantised" and value < threshold else state)
        for state, value, pin in zip(states, cosine.tolist(), pins, strict=True)
    ]


def hover_texts(layers: pd.DataFrame) -> list[str]:
    """Exact figures of each layer, as HTML for a hover box; nothing that an edit changes."""
    accumulated, unmeasured = _("accumulated"), _("not measured yet: press Analyse")
    parameters = _("parameters")
    columns = "name type shape eligible reason cosine error sqnr accumulated_error parameters macs"
    pins = layers["pin"].tolist() if "pin" in layers else [""] * len(layers)
    held = {"float": _("every search leaves it float"), "quantised": _("every search quantises it")}
    texts = []
    for *row, pin in zip(
        *(layers[column].tolist() for column in columns.split()), pins, strict=True
    ):
        name, kind, shape, eligible, reason, cosine, error, sqnr, depth, weights, macs = row
        text = f"<b>{escape(name)}</b><br>{kind} {shape}"
        if not eligible and reason:
            text += f"<br>{escape(said(reason))}"
        if pin:
            text += f"<br>{_('pinned')}: {held[pin]}"
        if cosine == cosine:  # a NaN is not equal to itself
            text += f"<br>cos {cosine:.6f} · 1−cos {error:.3e} · SQNR {sqnr:.1f} dB"
            if depth == depth:
                text += f"<br>{accumulated} 1−cos {depth:.3e}"
        elif eligible:
            text += f"<br>{unmeasured}"
        texts.append(f"{text}<br>{weights:,.0f} {parameters} · {macs:,.0f} MAC")
    return texts


def state_fill(states: Sequence[str], dark: bool) -> dict[str, object]:
    """Marker colours and patterns of bars in ``states``.

    Colours are numbers on a stepped scale: plotly checks each colour name by itself, which takes
    a tenth of a second for a thousand bars.
    """
    colours = palette(dark)
    steps: list[list[object]] = []
    for index, state in enumerate(STATES):
        colour = getattr(colours, state)
        steps += [[index / len(STATES), colour], [(index + 1) / len(STATES), colour]]
    codes = {state: index + 0.5 for index, state in enumerate(STATES)}
    fill: dict[str, object] = {
        "color": np.array([codes[state] for state in states], dtype=np.float64),
        "colorscale": steps,
        "cmin": 0,
        "cmax": len(STATES),
        "showscale": False,
    }
    shapes = [PATTERNS[state] for state in states]
    if any(shapes):
        fill["pattern"] = {**hatch("skipped", dark), "shape": shapes}
    return fill


def _log_floor(values: Floats, line: float | None) -> float:
    positive = values[np.isfinite(values) & (values > 0)]
    lowest = float(positive.min()) if positive.size else 1e-5
    if line is not None and line > 0:
        lowest = min(lowest, line / 10)
    return float(10.0 ** (math.floor(math.log10(lowest)) - 0.15))


def axis_range(values: Floats, quantity: Quantity, line: float | None) -> tuple[float, float]:
    """Axis range in axis units (decades on a log axis)."""
    finite = values[np.isfinite(values)]
    if quantity.log:
        floor = _log_floor(values, line)
        top = max(float(finite.max()) if finite.size else 0.0, line or 0.0, floor * 100)
        return math.log10(floor), math.log10(top) + 0.2
    low = float(finite.min()) if finite.size else 0.0
    high = float(finite.max()) if finite.size else 1.0
    if line is not None:
        low, high = min(low, line), max(high, line)
    if quantity.column == "cosine":
        high = 1.0
        return low - 0.08 * max(high - low, 1e-6), high
    return min(0.0, low), high + 0.06 * max(high - min(0.0, low), 1e-6)


def sensitivity_chart(
    layers: pd.DataFrame,
    *,
    quantity: str = "error",
    order: Order = "execution",
    threshold: float = 0.99,
    selected: Collection[str] = (),
    dark: bool = False,
    uirevision: object = "sensitivity",
    height: int | None = 280,
) -> go.Figure:
    """One bar a layer; the threshold is shape 0 and can be dragged.

    ``layers`` is the session's table (columns in ``/workbench/studio/session.py``). Trace 0 has the
    bars: ``customdata`` is the layer's name, ``x`` its place in ``order``. The line stands at
    ``1 − threshold`` on error axes and at ``threshold`` on the cosine axis.
    """
    spec = QUANTITIES[quantity]
    colours = palette(dark)
    rows = display_order(layers, quantity, order)
    table = layers.iloc[rows]
    values = quantity_values(table, quantity)
    line = spec.threshold(threshold) if spec.threshold else None
    low, high = axis_range(values, spec, line)
    states = bar_states(table, threshold)
    chosen = set(selected)
    outlined = [name in chosen for name in table["name"]]
    heights, base = bar_heights(values, spec, low, high)
    xaxis, yaxis = _axes(table, spec, low, high)
    figure = base_figure(
        dark=dark,
        height=height,
        uirevision=f"{uirevision}-{quantity}-{order}",
        xaxis=xaxis,
        yaxis=yaxis,
        barmode="overlay",
        editrevision=f"{threshold!r}",
        dragmode="select",
        hovermode="x",
        # The page takes a click anywhere in a bar's column as a click on the bar.
        meta={"click": "columns"},
        selectdirection="h",
        selectionrevision=str(hash((tuple(sorted(chosen)), tuple(states)))),
        margin={"l": 56, "r": 16, "t": 26, "b": _room_below(table) if len(table) <= 60 else 36},
    )
    figure.add_bar(
        x=np.arange(len(table)),
        y=heights,
        base=base,
        meta=exact_values(base + heights, values),
        customdata=np.asarray(table["name"], dtype=object),
        hovertext=hover_texts(table),
        hovertemplate="%{hovertext}<extra></extra>",
        marker={
            **state_fill(states, dark),
            "line": {"color": colours.text, "width": np.where(outlined, 2, 0)},
        },
        showlegend=False,
        name="layers",
    )
    _add_legend(figure, states, dark)
    if line is not None:
        _add_threshold(figure, line, threshold, dark)
    if not len(table):
        note(figure, _("No layers yet"), dark=dark)
    return figure


def bar_heights(
    values: Floats, spec: Quantity, low: float, high: float
) -> tuple[Floats, float | Floats]:
    """Bar lengths and base; a layer without a value keeps a stub, so that it can be clicked."""
    stub = 0.025 * (high - low)
    if spec.log:
        shown = np.where(np.isfinite(values) & (values > 0), values, 0.0)
        return np.maximum(shown, 10.0 ** (low + stub)), 0.0
    tops = np.where(np.isfinite(values), values, low)
    return np.maximum(tops, low + stub) - low, low


def _add_legend(figure: go.Figure, states: list[str], dark: bool) -> None:
    colours = palette(dark)
    for state in STATES:
        if state in states:
            figure.add_bar(
                x=[None],
                y=[None],
                name=_(STATE_TITLES[state]),
                marker={"color": getattr(colours, state), "pattern": hatch(state, dark)},
                hoverinfo="skip",
            )


def _axes(
    table: pd.DataFrame, spec: Quantity, low: float, high: float
) -> tuple[dict[str, object], dict[str, object]]:
    yaxis: dict[str, object] = {
        "type": "log" if spec.log else "linear",
        "range": [low, high],
        "title": {"text": _(spec.title)},
        "fixedrange": True,
    }
    if spec.log:
        yaxis |= POWERS
    count = len(table)
    xaxis: dict[str, object] = {"range": [-0.7, max(count, 1) - 0.3], "showgrid": False}
    if count <= 60:
        labels = tick_names([str(name) for name in table["name"]])
        xaxis |= {
            "tickvals": list(range(count)),
            "ticktext": labels,
            "tickangle": tick_angle(labels, ROOM),
            # Otherwise plotly measures every label at every redraw: half of a toggle's time.
            "ticklabeloverflow": "allow",
        }
    else:
        xaxis["title"] = {"text": _("layer, in the order shown")}
    return xaxis, yaxis


def _room_below(table: pd.DataFrame) -> int:
    """Pixels that the slanted names take under the axis."""
    labels = tick_names([str(name) for name in table["name"]])
    return max(36, 18 + 4 * max(map(len, labels))) if tick_angle(labels, ROOM) else 36


def short_name(name: str, limit: int = 14) -> str:
    """The end of a module path, which is what tells neighbours apart."""
    return name if len(name) <= limit else "…" + name[-(limit - 1) :]


def tick_names(names: Sequence[str], limit: int = 18) -> list[str]:
    """Short labels: path ends and beginnings that tell no two layers apart are dropped.

    One of each from all names, and more from those that are still longer than ``limit``.
    """
    parts = [name.split(".") for name in names]
    for longest in (0, limit):
        for cut in (slice(None, -1), slice(1, None)):
            shorter = [
                part[cut] if len(part) > 1 and len(".".join(part)) > longest else part
                for part in parts
            ]
            if len({tuple(part) for part in shorter}) == len(names):
                parts = shorter
    return [short_name(".".join(part), limit) for part in parts]


def tick_angle(labels: Sequence[str], room: int) -> int:
    """Degrees by which names are turned that have room for so many letters under their axis."""
    return -40 if len(labels) > 8 or sum(map(len, labels)) > room else 0


def _add_threshold(figure: go.Figure, line: float, threshold: float, dark: bool) -> None:
    colours = palette(dark)
    figure.add_shape(
        type="line",
        xref="paper",
        x0=0,
        x1=1,
        y0=line,
        y1=line,
        line={"color": colours.text, "width": 2, "dash": "dash"},
        editable=True,
        name="threshold",
        layer="above",
    )
    figure.add_annotation(
        xref="paper",
        x=0.002,
        y=math.log10(line) if figure.layout.yaxis.type == "log" and line > 0 else line,
        xanchor="left",
        yanchor="bottom",
        text=f"cos {threshold:.6g}  ↕",
        showarrow=False,
        font={"size": 11, "color": colours.text},
    )
    # Without this the dragged line is filled with plotly's own selection colour.
    figure.update_layout(activeshape={"fillcolor": "rgba(0,0,0,0)", "opacity": 1})
