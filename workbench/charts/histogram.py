"""One layer from inside: its input, its weights, and the grid of the quantiser."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from workbench.charts import formats
from workbench.charts.text import _
from workbench.charts.theme import CLEAR, POWERS, base_figure, note, palette

if TYPE_CHECKING:
    from workbench.engine.analysis.histograms import LayerHistogram

Floats = npt.NDArray[np.float64]
_MOST_STEPS = 64  # more grid marks than this would be a solid line


def layer_histogram_chart(
    hist: LayerHistogram,
    *,
    log_counts: bool = True,
    dark: bool = False,
    uirevision: object = None,
    height: int | None = 280,
) -> go.Figure:
    """Histogram of a layer's input with clip bounds and grid on the left, of its weights right.

    Values outside ``activation_low`` … ``activation_high`` are clipped by the quantiser; that part
    is shaded. The marks under the bars are the quantisation steps, when few enough to be seen.
    """
    figure = base_figure(dark=dark, height=height, uirevision=uirevision or hist.name)
    weights = np.asarray(hist.weight_counts)
    split = 0.56 if weights.size else 1.0
    figure.update_layout(
        margin={"l": 56, "r": 16, "t": 30, "b": 52},
        bargap=0,
        showlegend=False,
        xaxis={"domain": [0, split - (0.06 if weights.size else 0)], "anchor": "y"},
        xaxis2={"domain": [split, 1], "anchor": "y2", "visible": bool(weights.size)},
        yaxis2={"anchor": "x2", "visible": bool(weights.size)},
    )
    _activations(figure, hist, dark)
    if weights.size:
        _weights(figure, hist, dark)
    for axis in ("yaxis", "yaxis2"):
        figure.layout[axis].update(
            type="log" if log_counts else "linear", title={"text": _("count")}, showgrid=True
        )
    if log_counts:
        figure.update_yaxes(**POWERS)
    return figure


def _bars(
    figure: go.Figure, edges: Floats, counts: Floats, colour: str, axis: str, unit: str
) -> None:
    middles = (edges[:-1] + edges[1:]) / 2
    figure.add_bar(
        x=middles,
        y=np.where(counts > 0, counts, np.nan),
        width=np.diff(edges),
        marker={"color": colour, "line": {"width": 0}},
        xaxis=f"x{axis}",
        yaxis=f"y{axis}",
        customdata=np.stack([edges[:-1], edges[1:]], axis=1),
        hovertemplate=(
            "%{customdata[0]:.5g} … %{customdata[1]:.5g} " + unit + "<br>%{y:,.0f}<extra></extra>"
        ),
    )


def _activations(figure: go.Figure, hist: LayerHistogram, dark: bool) -> None:
    colours = palette(dark)
    edges = np.asarray(hist.activation_edges, dtype=np.float64)
    counts = np.asarray(hist.activation_counts, dtype=np.float64)
    if not counts.size:
        note(figure, _("No input seen yet: press Analyse"), dark=dark)
        return
    _bars(figure, edges, counts, colours.accent, "", "")
    low, high = float(hist.activation_low), float(hist.activation_high)
    first, last = float(edges[0]), float(edges[-1])
    figure.update_layout(xaxis_title_text=_("input value"))
    for bound, outside in ((low, (first, low)), (high, (high, last))):
        if not math.isfinite(bound):
            continue
        figure.add_shape(
            type="line",
            xref="x",
            yref="paper",
            x0=bound,
            x1=bound,
            y0=0,
            y1=1,
            line={"color": colours.bad, "width": 1.5, "dash": "dash"},
        )
        if outside[1] > outside[0]:
            figure.add_shape(
                type="rect",
                xref="x",
                yref="paper",
                x0=outside[0],
                x1=outside[1],
                y0=0,
                y1=1,
                fillcolor=colours.bad,
                opacity=0.10,
                line={"width": 0},
            )
        figure.add_annotation(
            x=bound,
            xref="x",
            y=1,
            yref="paper",
            yanchor="bottom",
            showarrow=False,
            text=f"{_('clip')} {bound:.4g}",
            font={"size": 11, "color": colours.bad},
        )
    _grid(figure, hist, dark)


def _grid(figure: go.Figure, hist: LayerHistogram, dark: bool) -> None:
    low, high = float(hist.activation_low), float(hist.activation_high)
    step = float(hist.activation_scale)
    if not (math.isfinite(step) and step > 0 and math.isfinite(low) and high > low):
        return
    steps = round((high - low) / step) + 1
    figure.update_layout(
        xaxis_title_text=f"{_('input value')}<br>"
        + _("{n} steps of {step}").format(n=steps, step=formats.exact(step))
    )
    if steps > _MOST_STEPS:
        return
    figure.add_scatter(
        x=low + step * np.arange(steps),
        y=np.zeros(steps),
        yaxis="y3",
        mode="markers",
        marker={
            "symbol": "line-ns",
            "size": 7,
            "line": {"color": palette(dark).text, "width": 1},
            "color": CLEAR,
        },
        hovertemplate=_("step") + f" {formats.exact(step)}<br>%{{x:.6g}}<extra></extra>",
    )
    # A second y axis of fixed range, so that the marks stand at the foot of a log axis too.
    figure.update_layout(
        yaxis3={
            "overlaying": "y",
            "anchor": "x",
            "range": [-0.02, 1],
            "visible": False,
            "fixedrange": True,
        }
    )


def _weights(figure: go.Figure, hist: LayerHistogram, dark: bool) -> None:
    colours = palette(dark)
    edges = np.asarray(hist.weight_edges, dtype=np.float64)
    _bars(figure, edges, np.asarray(hist.weight_counts, dtype=np.float64), colours.muted, "2", "")
    scales = np.asarray(hist.weight_scales, dtype=np.float64)
    text = _("weight value")
    if scales.size == 1:
        text += f"<br>{_('scale')} {formats.exact(float(scales[0]))}"
    elif scales.size:
        text += (
            f"<br>{_('{n} scales').format(n=scales.size)} "
            f"{formats.exact(float(scales.min()))} … {formats.exact(float(scales.max()))}"
        )
    figure.update_layout(xaxis2_title_text=text)
