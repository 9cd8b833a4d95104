"""Layers of a transformer: weight errors, outlier channels, what smoothing does to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from workbench.charts.formats import percent
from workbench.charts.sensitivity import short_name
from workbench.charts.text import _
from workbench.charts.theme import base_figure, log_scale, note, palette, with_gaps

if TYPE_CHECKING:
    from workbench.engine.analysis.module_layers import ChannelProfile, WeightError

_SMALLEST = 1e-12
_MOST_NAMES = 14  # beside each other under a third of the page


def weight_error_chart(
    errors: Mapping[str, Sequence[WeightError]],
    *,
    dark: bool = False,
    uirevision: object = "weight-errors",
    height: int | None = 300,
) -> go.Figure:
    """Relative weight error of each layer, one series a configuration (its name: the key)."""
    colours = palette(dark)
    figure = base_figure(dark=dark, height=height, uirevision=uirevision)
    layers = list(dict.fromkeys(e.name for series in errors.values() for e in series))
    if not layers:
        note(figure, _("Weight errors appear here"), dark=dark)
        return figure
    shades = (colours.accent, colours.pinned, colours.pruned, colours.good, colours.muted)
    symbols = ("circle", "square", "diamond", "triangle-up", "x")
    for number, (label, series) in enumerate(errors.items()):
        figure.add_scatter(
            x=[e.name for e in series],
            y=[100.0 * max(e.relative, _SMALLEST) for e in series],
            customdata=[[e.formats, e.sqnr_db, percent(e.relative, 2)] for e in series],
            name=label,
            mode="lines+markers",
            line={"color": shades[number % len(shades)], "width": 1},
            # Not by colour alone.
            marker={"symbol": symbols[number % len(symbols)], "size": 7},
            hovertemplate=(
                f"%{{x}}<br>{label}, %{{customdata[0]}}<br>{_('relative error')} "
                "%{customdata[2]} · %{customdata[1]:.1f} dB<extra></extra>"
            ),
        )
    figure.update_layout(margin={"l": 64, "r": 16, "t": 30, "b": 116})
    step = math.ceil(len(layers) / _MOST_NAMES)
    figure.update_xaxes(
        type="category",  # a layer's name may look like a number
        categoryorder="array",
        categoryarray=layers,
        tickvals=layers[::step],
        ticktext=[_label(name) for name in layers[::step]],
        tickangle=-60,
    )
    figure.update_yaxes(
        type="log", title_text=_("relative weight error"), ticksuffix=" %", exponentformat="none"
    )
    return figure


def outlier_chart(
    profiles: Sequence[ChannelProfile],
    *,
    after: bool = False,
    dark: bool = False,
    uirevision: object = "outliers",
    height: int | None = None,
) -> go.Figure:
    """Layers by input channels: how many times the median channel each one is.

    Channels stand in their own order, so that one which stands out in many layers is a line.
    ``after``: behind the smoothing factors, where there are any.
    """
    figure = base_figure(
        dark=dark, height=height or 90 + 20 * max(3, len(profiles)), uirevision=uirevision
    )
    if not profiles:
        note(figure, _("Channels appear here"), dark=dark)
        return figure
    values = [p.activation_after if after else p.activation for p in profiles]
    width = max(len(v) for v in values)
    times = np.full((len(values), width), np.nan)
    for row, magnitudes in zip(times, values, strict=True):
        row[: len(magnitudes)] = magnitudes / max(float(np.median(magnitudes)), _SMALLEST)
    names = [p.name for p in profiles]
    figure.add_heatmap(
        z=with_gaps(np.log10(np.maximum(times, 0.1))),
        x=np.arange(width),
        y=names,
        customdata=with_gaps(times),
        zmin=0.0,
        zmax=2.0,
        colorscale=log_scale(dark),
        colorbar={
            "title": {"text": _("× median"), "side": "right"},
            "tickvals": [0, 1, 2],
            "ticktext": ["1", "10", "100"],
            "thickness": 12,
        },
        hovertemplate=(
            f"%{{y}}<br>{_('input channel')} %{{x}}<br>"
            f"%{{customdata:.1f}} {_('× median')}<extra></extra>"
        ),
    )
    longest = max(len(_label(name)) for name in names)
    figure.update_layout(margin={"l": 20 + 6 * longest, "r": 16, "t": 12, "b": 40})
    figure.update_yaxes(
        type="category",
        autorange="reversed",
        tickvals=names,
        ticktext=[_label(name) for name in names],
    )
    figure.update_xaxes(title_text=_("input channel"))
    return figure


def smoothing_chart(
    profile: ChannelProfile,
    *,
    dark: bool = False,
    uirevision: object = None,
    height: int | None = 320,
) -> go.Figure:
    """Magnitudes of one layer's input channels and weight columns, before and after smoothing."""
    colours = palette(dark)
    figure = base_figure(dark=dark, height=height, uirevision=uirevision or profile.name)
    channels = np.arange(len(profile.activation))
    halves = (
        (_("inputs"), profile.activation, profile.activation_after, "y"),
        (_("weights"), profile.weight, profile.weight_after, "y2"),
    )
    for number, (what, before, after, axis) in enumerate(halves):
        hover = f"{what}, {_('channel')} %{{x}}<br>"
        figure.add_bar(
            x=channels,
            y=np.maximum(before, _SMALLEST),
            name=_("before"),
            legendgroup="before",
            showlegend=number == 0,
            yaxis=axis,
            marker={"color": colours.skipped, "line": {"width": 0}},
            hovertemplate=f"{hover}{_('before')} %{{y:.4g}}<extra></extra>",
        )
        if profile.factors is None:
            continue
        figure.add_scatter(
            x=channels,
            y=np.maximum(after, _SMALLEST),
            name=_("after"),
            legendgroup="after",
            showlegend=number == 0,
            yaxis=axis,
            mode="markers",
            marker={"color": colours.accent, "size": 5},
            hovertemplate=f"{hover}{_('after')} %{{y:.4g}}<extra></extra>",
        )
    figure.update_layout(
        bargap=0.0,
        margin={"l": 56, "r": 16, "t": 26, "b": 40},
        xaxis={"title": {"text": _("input channel")}, "anchor": "y2"},
        yaxis={
            "domain": [0.54, 1.0],
            "type": "log",
            "title": {"text": _("largest input")},
        },
        yaxis2={
            "domain": [0.0, 0.46],
            "type": "log",
            "title": {"text": _("largest weight")},
        },
    )
    figure.update_yaxes(dtick="D2", tickformat="~g")  # 1, 2 and 5, as whole numbers
    return figure


def _label(name: str) -> str:
    """From the block's number on: ``model.layers.3.mlp.up_proj`` is ``3.mlp.up_proj``."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return short_name(name) if number is None else ".".join(parts[number:])
