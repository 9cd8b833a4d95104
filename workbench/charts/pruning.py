"""What pruning takes from each layer: sensitive channels, a plan, the two of four that stay."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from html import escape

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from workbench.charts import formats
from workbench.charts.sensitivity import short_name, tick_angle, tick_names
from workbench.charts.text import _
from workbench.charts.theme import base_figure, hatch, log_scale, note, palette, with_gaps

_LOWEST, _HIGHEST = -3.0, -1.0
"""Between these ends the colours begin, in decades below the most sensitive channel."""

_NAMED_BARS = 32
"""Above this many layers slanted names lie on one another in half of the page's width."""

_ROOM = 70
"""Letters that fit side by side under a chart of half the page."""

_WIDE = 80
"""Above this many channels in a row, gaps between them hide them and crosses run together."""


def channel_sensitivity_chart(
    sensitivity: Mapping[str, Sequence[float]],
    removed: Mapping[str, Collection[int] | int] | None = None,
    *,
    dark: bool = False,
    uirevision: object = "channel-sensitivity",
    height: int | None = None,
) -> go.Figure:
    """Layers by channels, those of each layer from the most sensitive one to the least.

    ``sensitivity``: layer -> one value of at least 0 a channel, NaN where there is none; the colour
    is the share of the largest value of all, on a logarithmic scale. ``removed``: layer -> channels
    that go, or how many of the least sensitive ones; they get a cross, or a line where the channels
    are too many for crosses.
    """
    colours = palette(dark)
    figure = base_figure(
        dark=dark, height=height or 90 + 20 * max(3, len(sensitivity)), uirevision=uirevision
    )
    if not sensitivity:
        note(figure, _("Sensitive channels appear here"), dark=dark)
        return figure
    names = list(sensitivity)
    width = max(len(values) for values in sensitivity.values())
    shown = np.full((len(names), width), np.nan)
    channels = np.zeros((len(names), width), dtype=np.int64)
    crosses: list[tuple[int, int]] = []
    for row, name in enumerate(names):
        values = np.asarray(sensitivity[name], dtype=np.float64)
        # A NaN sorts last, also in descending order.
        order = np.argsort(-values, kind="stable")
        shown[row, : len(values)] = values[order]
        channels[row, : len(values)] = order
        gone = _gone(removed.get(name, 0) if removed else 0, order, values)
        crosses += [(place, row) for place, channel in enumerate(order) if int(channel) in gone]
    logs = _decades(shown)
    low = float(np.nanmin(logs, initial=_HIGHEST))
    ticks = [tick for tick in (-3, -2, -1, 0) if tick >= low]
    figure.add_heatmap(
        z=with_gaps(logs),
        x=np.arange(width),
        y=names,
        customdata=np.dstack([channels, with_gaps(shown)]),
        zmin=low,
        zmax=0.0,
        xgap=1 if width <= _WIDE else 0,
        ygap=1,
        hoverongaps=False,
        colorscale=log_scale(dark),
        colorbar={
            "title": {"text": _("of the largest"), "side": "right"},
            "tickvals": ticks,
            "ticktext": ["≤ 0.001" if tick == _LOWEST else f"{10.0**tick:g}" for tick in ticks],
            "thickness": 12,
        },
        hovertemplate=(
            f"%{{y}}<br>{_('channel')} %{{customdata[0]:d}}<br>"
            f"{_('sensitivity')} %{{customdata[1]:.3g}}<extra></extra>"
        ),
        name="channels",
    )
    if crosses:
        many = width > _WIDE
        x, rows = _strips(crosses) if many else zip(*crosses, strict=True)
        figure.add_scatter(
            x=list(x),
            y=[None if row is None else names[row] for row in rows],
            mode="lines" if many else "markers",
            marker={"symbol": "x-thin", "size": 7, "line": {"width": 1.5, "color": colours.text}},
            line={"width": 2, "color": colours.text},
            name=_("goes"),
            hoverinfo="skip",
        )
    labels = tick_names(names)
    figure.update_layout(
        margin={"l": 20 + 7 * max(map(len, labels)), "r": 16, "t": 12, "b": 40}, showlegend=False
    )
    figure.update_yaxes(
        type="category",  # a layer's name may look like a number
        autorange="reversed",
        categoryorder="array",
        categoryarray=names,
        tickvals=names,
        ticktext=labels,
        showgrid=False,
    )
    figure.update_xaxes(title_text=_("channels, the most sensitive first"), showgrid=False)
    return figure


def channel_plan_chart(
    channels: Mapping[str, int],
    removed: Mapping[str, Collection[int] | int],
    *,
    macs: tuple[int, int] | None = None,
    parameters: tuple[int, int] | None = None,
    notes: Mapping[str, str] | None = None,
    dark: bool = False,
    uirevision: object = "channel-plan",
    height: int | None = 280,
) -> go.Figure:
    """One bar a layer: the channels that stay, and those that go on top of them.

    ``channels``: layer -> how many it has; ``removed``: layer -> which go, or how many.
    ``macs`` and ``parameters``: of the whole model, before and after. ``notes``: why a layer loses
    none.
    """
    colours = palette(dark)
    if not channels:
        figure = base_figure(dark=dark, height=height, uirevision=uirevision)
        note(figure, _("The plan appears here"), dark=dark)
        return figure
    names = list(channels)
    figure = base_figure(
        dark=dark,
        height=height,
        uirevision=uirevision,
        xaxis=_layer_axis(names),
        yaxis={"title": {"text": _("channels")}},
        barmode="stack",
        margin={"l": 56, "r": 16, "t": 44, "b": 84},
    )
    gone = np.array([_count(removed.get(name, 0)) for name in names])
    kept = np.array([channels[name] for name in names]) - gone
    reasons = notes or {}
    hover = [
        f"{escape(name)}<br>{_('keeps {left} of {all}').format(left=stay, all=channels[name])}"
        + (f"<br>{escape(reasons[name])}" if name in reasons else "")
        for name, stay in zip(names, kept.tolist(), strict=True)
    ]
    for what, counts, state, colour in (
        (_("stay"), kept, "quantised", colours.accent),
        (_("go"), gone, "pruned", colours.pruned),
    ):
        figure.add_bar(
            x=names,
            y=counts,
            name=what,
            hovertext=hover,
            hovertemplate="%{hovertext}<extra></extra>",
            marker={"color": colour, "pattern": hatch(state, dark), "line": {"width": 0}},
        )
    totals = [
        f"{what} {formats.count(before)} → {formats.count(after)} "
        f"({formats.percent(after / max(before, 1))})"
        for what, (before, after) in (
            (_("multiply-accumulates"), macs or (0, 0)),
            (_("parameters"), parameters or (0, 0)),
        )
        if before
    ]
    if totals:
        figure.add_annotation(
            text=" · ".join(totals),
            xref="paper",
            yref="paper",
            x=1.0,
            y=1.0,
            xanchor="right",
            yanchor="bottom",
            showarrow=False,
            font={"size": 12, "color": colours.text},
        )
    return figure


def _layer_axis(names: list[str]) -> dict[str, object]:
    axis: dict[str, object] = {"type": "category"}
    if len(names) > _NAMED_BARS:
        title = _("layer, in the order shown")
        return axis | {"showticklabels": False, "title": {"text": title}}
    labels = tick_names(names)
    return axis | {
        "tickvals": names,
        "ticktext": labels,
        "tickangle": tick_angle(labels, _ROOM),
        "ticklabeloverflow": "allow",  # or plotly measures every label at every redraw
    }


def sparse_weight_chart(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    *,
    name: str = "",
    dark: bool = False,
    uirevision: object = "sparse-weight",
    height: int | None = 300,
) -> go.Figure:
    """A weight [outputs, inputs] beside the same one with zeros, which are left blank.

    Lines divide the inputs into groups of four. Raises ``ValueError`` unless both have one shape
    of two dimensions.
    """
    dense, sparse = (np.asarray(w, dtype=np.float64) for w in (before, after))
    if dense.ndim != 2 or dense.shape != sparse.shape:
        raise ValueError(
            f"the weights have shapes {dense.shape} and {sparse.shape}; allowed: twice the same "
            "[outputs, inputs]"
        )
    colours = palette(dark)
    figure = base_figure(dark=dark, height=height, uirevision=uirevision)
    largest = float(np.abs(dense).max(initial=0.0)) or 1.0
    for number, (what, weight) in enumerate(((_("before"), dense), (_("after"), sparse))):
        suffix = "2" if number else ""
        figure.add_heatmap(
            z=with_gaps(np.where(weight == 0.0, np.nan, weight)),
            xaxis=f"x{suffix}",
            yaxis=f"y{suffix}",
            zmin=-largest,
            zmax=largest,
            xgap=1,
            ygap=1,
            hoverongaps=False,
            colorscale=[[0.0, colours.accent], [0.5, colours.grid], [1.0, colours.pinned]],
            showscale=bool(number),
            colorbar={"title": {"text": _("weight"), "side": "right"}, "thickness": 12},
            hovertemplate=(
                f"{_('output')} %{{y}}, {_('input')} %{{x}}<br>%{{z:.4g}}<extra></extra>"
            ),
            name=what,
        )
        for column in range(4, dense.shape[1], 4):
            figure.add_shape(
                type="line",
                xref=f"x{suffix}",
                yref=f"y{suffix}",
                x0=column - 0.5,
                x1=column - 0.5,
                y0=-0.5,
                y1=dense.shape[0] - 0.5,
                line={"color": colours.muted, "width": 1},
            )
        share = np.count_nonzero(weight) / max(weight.size, 1)
        figure.add_annotation(
            text=f"{short_name(name)} {what}: {formats.percent(share)} {_('are not 0')}".strip(),
            xref=f"x{suffix} domain",
            yref="paper",
            x=0.0,
            y=1.0,
            xanchor="left",
            yanchor="bottom",
            showarrow=False,
            font={"size": 12, "color": colours.text},
        )
    figure.update_layout(
        margin={"l": 56, "r": 16, "t": 28, "b": 40},
        xaxis={"domain": [0.0, 0.47], "title": {"text": _("input channel")}},
        xaxis2={"domain": [0.53, 1.0], "anchor": "y2", "title": {"text": _("input channel")}},
        yaxis={"autorange": "reversed", "title": {"text": _("output channel")}},
        yaxis2={"autorange": "reversed", "anchor": "x2", "matches": "y", "showticklabels": False},
    )
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False)
    return figure


def _count(gone: Collection[int] | int) -> int:
    return gone if isinstance(gone, int) else len(gone)


def _gone(
    given: Collection[int] | int,
    order: npt.NDArray[np.intp],
    values: npt.NDArray[np.float64],
) -> set[int]:
    """The channels meant by ``given``; ``order`` has the most sensitive first, NaN last."""
    if not isinstance(given, int):
        return set(given)
    known = int(np.isfinite(values).sum())
    return {int(channel) for channel in order[max(known - given, 0) : known]}


def _strips(
    places: Sequence[tuple[int, int]],
) -> tuple[list[float | None], list[int | None]]:
    """Neighbouring (place, row) as horizontal strokes, with a gap after each: their x and y."""
    x: list[float | None] = []
    y: list[int | None] = []
    start = last = (-2, -1)
    for place, row in [*places, (-2, -1)]:
        if (place, row) != (last[0] + 1, last[1]):
            if last[0] >= 0:
                x += [start[0] - 0.5, last[0] + 0.5, None]
                y += [last[1], last[1], None]
            start = (place, row)
        last = (place, row)
    return x, y


def _decades(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """log10 of each value's share of the largest one, not below the end of the scale."""
    finite = values[np.isfinite(values)]
    largest = float(finite.max(initial=0.0)) or 1.0
    logs: npt.NDArray[np.float64] = np.log10(np.maximum(values / largest, 10.0**_LOWEST))
    return logs
