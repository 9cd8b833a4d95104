"""What quantising does to one layer: weights by channel, error, output against output."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from workbench.charts.text import _, ngettext
from workbench.charts.theme import POWERS, base_figure, note, palette

if TYPE_CHECKING:
    from workbench.engine.analysis.profile import LayerProfile

_MARGIN = {"l": 56, "r": 12, "t": 26, "b": 40}


def weight_range_chart(
    profile: LayerProfile, *, dark: bool = False, height: int | None = 230
) -> go.Figure:
    """One bar an output channel from its smallest to its largest weight.

    The marks above and below are the ends of the channel's quantised range (its scale times the
    first and last code): far from the bar, levels are wasted.
    """
    colours = palette(dark)
    figure = _figure(profile, dark, height, _("weights by output channel"))
    low, high = profile.channel_low, profile.channel_high
    if not len(low):
        note(figure, _("This layer has no weights"), dark=dark)
        return figure
    channels = np.arange(len(low))
    codes = 2 ** (profile.weight_bits - 1)
    scales = profile.channel_scales
    figure.add_bar(
        x=channels,
        y=high - low,
        base=low,
        marker={"color": colours.accent, "line": {"width": 0}},
        customdata=np.stack([low, high, scales, high / scales, low / scales], axis=1),
        hovertemplate=(
            _("channel") + " %{x}<br>%{customdata[0]:.5g} … %{customdata[1]:.5g}<br>"
            + _("scale") + " %{customdata[2]:.5g}<br>"
            + _("codes") + " %{customdata[4]:.0f} … %{customdata[3]:.0f}<extra></extra>"
        ),
    )  # fmt: skip
    size = max(2.0, min(14.0, 260 / len(low)))
    for ends in (scales * (codes - 1), -scales * codes):
        figure.add_scatter(
            x=channels,
            y=ends,
            mode="markers",
            marker={
                "symbol": "line-ew",
                "size": size,
                "line": {"color": colours.bad, "width": 1.5},
                "color": colours.bad,
            },
            hovertemplate=_("end of the range") + " %{y:.5g}<extra></extra>",
        )
    count = len(np.unique(scales))
    text = _("one scale") if count == 1 else _("{n} scales").format(n=count)
    bits = ngettext("{n} bit", "{n} bits", profile.weight_bits).format(n=profile.weight_bits)
    figure.update_layout(
        bargap=0.25 if len(low) < 80 else 0.0,
        xaxis_title_text=f"{_('output channel')} · {text}, {bits}",
        yaxis_title_text=_("weight"),
    )
    return figure


def error_chart(
    profile: LayerProfile, *, dark: bool = False, height: int | None = 230
) -> go.Figure:
    """Histogram of the difference that quantising makes to the layer's output."""
    colours = palette(dark)
    figure = _figure(profile, dark, height, _("error of the output"))
    edges, counts = profile.error_edges, profile.error_counts.astype(np.float64)
    middles = (edges[:-1] + edges[1:]) / 2
    figure.add_bar(
        x=middles,
        y=np.where(counts > 0, counts, np.nan),
        width=np.diff(edges),
        marker={"color": colours.accent, "line": {"width": 0}},
        customdata=np.stack([edges[:-1], edges[1:]], axis=1),
        hovertemplate=("%{customdata[0]:.5g} … %{customdata[1]:.5g}<br>%{y:,.0f}<extra></extra>"),
    )
    total = counts.sum()
    text = _("quantised − float")
    if total:
        mean = float((middles * counts).sum() / total)
        spread = math.sqrt(max(0.0, float((middles**2 * counts).sum() / total) - mean**2))
        text += f" · {_('mean')} {mean:.3g}, σ {spread:.3g}"
    figure.update_layout(
        bargap=0,
        xaxis_title_text=text,
        yaxis={"type": "log", "title": {"text": _("count")}, **POWERS},
    )
    return figure


def output_scatter(
    profile: LayerProfile, *, dark: bool = False, height: int | None = 230
) -> go.Figure:
    """A sample of the layer's outputs: float across, quantised up; the line is "the same"."""
    colours = palette(dark)
    figure = _figure(profile, dark, height, _("output, quantised against float"))
    x, y = profile.sample_float, profile.sample_quantized
    if not len(x):
        note(figure, _("The layer gave no output"), dark=dark)
        return figure
    ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
    figure.add_scatter(
        x=ends,
        y=ends,
        mode="lines",
        line={"color": colours.muted, "width": 1, "dash": "dot"},
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=x,
        y=y,
        mode="markers",
        marker={"color": colours.accent, "size": 3.5, "opacity": 0.55},
        customdata=y - x,
        hovertemplate=(
            _("float") + " %{x:.6g}<br>" + _("quantised") + " %{y:.6g}<br>"
            + _("error") + " %{customdata:.3g}<extra></extra>"
        ),
    )  # fmt: skip
    figure.update_layout(
        xaxis_title_text=f"{_('float')} · "
        + ngettext("{n} value", "{n} values", len(x)).format(n=f"{len(x):,}"),
        yaxis_title_text=_("quantised"),
    )
    return figure


def _figure(profile: LayerProfile, dark: bool, height: int | None, title: str) -> go.Figure:
    figure = base_figure(dark=dark, height=height, uirevision=profile.histogram.name)
    figure.update_layout(margin=dict(_MARGIN), showlegend=False)
    figure.add_annotation(
        text=title,
        xref="paper",
        yref="paper",
        x=0,
        y=1,
        xanchor="left",
        yanchor="bottom",
        showarrow=False,
        font={"size": 12, "color": palette(dark).text},
    )
    return figure
