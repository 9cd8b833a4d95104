"""Where a model's parameters or operations sit: a treemap or icicle by module path."""

from __future__ import annotations

from typing import Literal

import pandas as pd
import plotly.graph_objects as go

from workbench.charts import formats
from workbench.charts.sensitivity import STATE_TITLES, tick_names
from workbench.charts.text import _
from workbench.charts.theme import base_figure, note, palette

LONGEST = 28
"""Letters of a module's name in its box."""


def module_chart(
    layers: pd.DataFrame,
    *,
    value: Literal["parameters", "macs"] = "parameters",
    kind: Literal["treemap", "icicle"] = "treemap",
    model_name: str = "model",
    dark: bool = False,
    uirevision: object = "model",
    height: int | None = 340,
) -> go.Figure:
    """Area = share of ``value``; one rectangle a module, leaves are the layers (``ids`` = path)."""
    colours = palette(dark)
    figure = base_figure(dark=dark, height=height, uirevision=f"{uirevision}-{value}-{kind}")
    figure.update_layout(margin={"l": 4, "r": 4, "t": 26, "b": 4})
    totals: dict[str, float] = {"": 0.0}
    states: dict[str, str] = {}
    for row in layers.itertuples(index=False):
        amount = float(getattr(row, value))
        if amount <= 0:
            continue
        name = str(row.name)
        states[name] = str(row.state)
        for path in ("", *_prefixes(name)):
            totals[path] = totals.get(path, 0.0) + amount
    parents = _parents(totals, states)
    totals = {path: totals[path] for path in parents}
    if totals[""] <= 0:
        note(figure, _("No layers yet"), dark=dark)
        figure.update_layout(xaxis_visible=False, yaxis_visible=False)
        return figure
    paths, labels = list(totals), _labels(parents)
    unit = _("parameters") if value == "parameters" else "MAC"
    trace = go.Treemap if kind == "treemap" else go.Icicle
    figure.add_trace(
        trace(
            ids=[path or "/" for path in paths],
            labels=[labels[path] if path else model_name for path in paths],
            parents=[(parents[path] or "/") if path else "" for path in paths],
            values=[totals[path] for path in paths],
            branchvalues="total",
            customdata=[
                [
                    path or model_name,
                    f"{totals[path]:,.0f}",
                    formats.percent(totals[path] / totals[""], 1),
                    _state(states.get(path, "")),
                ]
                for path in paths
            ],
            hovertemplate=(
                "<b>%{customdata[0]}</b><br>%{customdata[1]} "
                + unit
                + " · %{customdata[2]}<br>%{customdata[3]}<extra></extra>"
            ),
            marker={
                "colors": [_colour(path, states, dark) for path in paths],
                "line": {"width": 1, "color": colours.hover},
            },
            textfont={"color": [_ink(path, states, dark) for path in paths]},
            **({"marker_pad": {"t": 20, "l": 3, "r": 3, "b": 3}} if kind == "treemap" else {}),
            tiling={"packing": "squarify", "pad": 1} if kind == "treemap" else None,
            pathbar={"visible": True, "thickness": 20},
        )
    )
    # A name that finds no room is left to the hover; plotly would shrink it to a few pixels.
    figure.update_layout(uniformtext={"minsize": 10, "mode": "hide"})
    return figure


def _state(state: str) -> str:
    return _(STATE_TITLES[state]) if state in STATE_TITLES else state


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def _parents(totals: dict[str, float], states: dict[str, str]) -> dict[str, str]:
    """Parent of every module that is drawn; one with a single child is drawn as that child."""
    children: dict[str, int] = {}
    for path in totals:
        if path:
            above = path.rpartition(".")[0]
            children[above] = children.get(above, 0) + 1
    drawn = {path for path in totals if not path or path in states or children[path] > 1}
    parents = {}
    for path in totals:
        if path in drawn:
            above = path.rpartition(".")[0]
            while above not in drawn:
                above = above.rpartition(".")[0]
            parents[path] = above
    return parents


def _labels(parents: dict[str, str]) -> dict[str, str]:
    """Paths below their parents; long ones by what tells siblings apart."""
    beneath: dict[str, list[str]] = {}
    for path, parent in parents.items():
        if path:
            beneath.setdefault(parent, []).append(path)
    labels: dict[str, str] = {}
    for parent, paths in beneath.items():
        names = [path[len(parent) + 1 :] if parent else path for path in paths]
        long = max(map(len, names)) > LONGEST
        labels |= zip(paths, tick_names(names, LONGEST) if long else names, strict=True)
    return labels


def _colour(path: str, states: dict[str, str], dark: bool) -> str:
    colours = palette(dark)
    if path in states:
        return str(getattr(colours, states[path]))
    return "#eef2f5" if not dark else "#2a323c"


def _ink(path: str, states: dict[str, str], dark: bool) -> str:
    if states.get(path) == "quantised":
        return "#ffffff" if not dark else "#10171e"
    return palette(dark).text
