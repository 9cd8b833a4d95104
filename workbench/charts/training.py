"""A training as it runs: loss, validation metric, learning rate, clip bounds over time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.charts import formats
from workbench.charts.sensitivity import short_name
from workbench.charts.text import _
from workbench.charts.theme import base_figure, note, palette

MOST_DRAWN = 800
"""Points of a line: more than a chart is wide in pixels would only slow the page."""

DASHES = ("solid", "dash", "dot", "dashdot")


def loss_chart(
    steps: pd.DataFrame,
    *,
    total: int = 0,
    dark: bool = False,
    uirevision: object = "loss",
    height: int | None = 220,
) -> go.Figure:
    """Loss by step, thin as measured and bold smoothed; ``total`` steps are to come in all.

    ``steps`` has the columns step, epoch and loss. A log axis where the loss stays above 0 and
    spans more than a factor of 20.
    """
    colours = palette(dark)
    figure = _figure(dark, height, uirevision, total, steps)
    if not len(steps):
        note(figure, _("The loss appears here"), dark=dark)
        return _hidden(figure)
    shown = thinned(steps)
    x, y = shown["step"].to_numpy(), shown["loss"].to_numpy(dtype=np.float64)
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        name=_("loss"),
        line={"color": colours.accent, "width": 1},
        opacity=0.35,
        hoverinfo="skip",
        showlegend=False,
    )
    figure.add_scatter(
        x=x,
        y=smoothed(y),
        mode="lines",
        name=_("loss, smoothed"),
        line={"color": colours.accent, "width": 2.5},
        customdata=np.column_stack([y, shown["epoch"].to_numpy() + 1]),
        hovertemplate=(
            f"{_('step')} %{{x}} · {_('epoch')} %{{customdata[1]}}<br>{_('loss')} "
            f"%{{customdata[0]:.4f}}<br>{_('smoothed')} %{{y:.4f}}<extra></extra>"
        ),
        showlegend=False,
    )
    finite = y[np.isfinite(y)]
    if finite.size and finite.min() > 0 and finite.max() > 20 * finite.min():
        figure.update_yaxes(type="log")
    figure.update_yaxes(title_text=_("loss"))
    _epoch_lines(figure, steps, dark)
    return figure


def metric_chart(
    evaluations: pd.DataFrame,
    *,
    metric_name: str = "metric",
    metric_float: float = math.nan,
    metric_before: float = math.nan,
    total: int = 0,
    dark: bool = False,
    uirevision: object = "train-metric",
    height: int | None = 220,
) -> go.Figure:
    """Validation metric by step, with the float model's and, if known, the untrained one's."""
    colours = palette(dark)
    figure = _figure(dark, height, uirevision, total, evaluations)
    figure.update_layout(margin={"r": 88})
    title = formats.metric_title(metric_name)
    share, scale = formats.is_share(metric_name), formats.metric_scale(metric_name)
    if len(evaluations):
        values = evaluations["metric"].to_numpy(dtype=np.float64)
        best = int(np.nanargmax(values)) if np.isfinite(values).any() else -1
        stars = ["star" if at == best else "circle" for at in range(len(values))]
        figure.add_scatter(
            x=evaluations["step"],
            y=scale * values,
            mode="lines+markers",
            line={"color": colours.accent, "width": 2},
            marker={
                "symbol": stars,
                "size": [13 if at == best else 8 for at in range(len(values))],
                "color": colours.accent,
            },
            hovertext=[
                f"{_('step')} {step} · {title} {formats.metric(value, metric_name)}"
                + (f"<br>{_('the best so far')}" if at == best else "")
                for at, (step, value) in enumerate(zip(evaluations["step"], values, strict=True))
            ],
            hovertemplate="%{hovertext}<extra></extra>",
            showlegend=False,
        )
    # The text of the higher line stands above it, that of the lower one below: they may be close.
    fallen = not metric_before > metric_float
    for value, words, colour, dash, side in (
        (metric_float, _("float"), colours.text, "dash", "bottom" if fallen else "top"),
        (metric_before, _("before training"), colours.bad, "dot", "top" if fallen else "bottom"),
    ):
        if math.isfinite(value):
            figure.add_hline(y=scale * value, line={"color": colour, "dash": dash, "width": 1.5})
            figure.add_annotation(
                x=1, xref="paper", xanchor="left", xshift=4, y=scale * value, align="left",
                yanchor=side, text=f"{words}<br>{formats.metric(value, metric_name)}",
                showarrow=False, font={"size": 11, "color": colours.muted},
            )  # fmt: skip
    known = [v for v in (metric_float, metric_before) if math.isfinite(v)]
    if len(evaluations):
        known += [v for v in evaluations["metric"].tolist() if math.isfinite(v)]
    if not known:
        note(figure, _("The metric appears here after the first epoch"), dark=dark)
        return _hidden(figure)
    spread = max(max(known) - min(known), 0.01 if share else abs(max(known)) * 1e-3)
    figure.update_yaxes(
        title_text=title,
        **formats.metric_axis(metric_name),
        range=[scale * (min(known) - 0.2 * spread), scale * (max(known) + 0.2 * spread)],
    )
    return figure


def rate_chart(
    steps: pd.DataFrame,
    *,
    total: int = 0,
    dark: bool = False,
    uirevision: object = "rate",
    height: int | None = 130,
) -> go.Figure:
    """Learning rate of the weights by step."""
    colours = palette(dark)
    figure = _figure(dark, height, uirevision, total, steps)
    if not len(steps) or not np.isfinite(steps["learning_rate"].to_numpy(dtype=float)).any():
        note(figure, _("The learning rate appears here"), dark=dark)
        return _hidden(figure)
    shown = thinned(steps)
    figure.add_scatter(
        x=shown["step"],
        y=shown["learning_rate"],
        mode="lines",
        line={"color": colours.pruned, "width": 2},
        hovertemplate=f"{_('step')} %{{x}} · {_('learning rate')} %{{y:.3g}}<extra></extra>",
        showlegend=False,
    )
    figure.update_yaxes(
        title_text=_("learning rate"), rangemode="tozero", exponentformat="e", nticks=4
    )
    return figure


def clip_chart(
    clips: pd.DataFrame,
    layers: Sequence[str],
    *,
    total: int = 0,
    dark: bool = False,
    uirevision: object = "clips",
    height: int | None = 220,
) -> go.Figure:
    """Upper and lower clip bound of each of ``layers`` by step, the range between them shaded.

    ``clips`` has the columns step, layer, low and high. At most four layers can be told apart.
    """
    figure = _figure(dark, height, uirevision, total, clips)
    figure.update_layout(margin={"t": 26})
    colours = palette(dark)
    wheel = (colours.accent, colours.pinned, colours.good, colours.pruned)
    drawn = 0
    for at, layer in enumerate(layers[: len(wheel)]):
        rows = thinned(clips[clips["layer"] == layer])
        if not len(rows):
            continue
        drawn += 1
        line = {"color": wheel[at], "width": 2, "dash": DASHES[at]}
        name = short_name(layer, 30)
        hover = (
            f"<b>{layer}</b><br>{_('step')} %{{x}} · "
            "%{customdata[0]:.4g} … %{customdata[1]:.4g}<extra></extra>"
        )
        bounds = np.column_stack([rows["low"].to_numpy(float), rows["high"].to_numpy(float)])
        for column, shown in (("low", False), ("high", True)):
            figure.add_scatter(
                x=rows["step"], y=rows[column], mode="lines", line=line, name=name,
                legendgroup=layer, showlegend=shown, customdata=bounds, hovertemplate=hover,
                fill="tonexty" if shown else None, fillcolor=_faint(wheel[at]),
            )  # fmt: skip
    if not drawn:
        words = _("Choose layers to follow their clip bounds")
        note(figure, words if len(clips) else _("The clip bounds appear here"), dark=dark)
        return _hidden(figure)
    figure.update_yaxes(title_text=_("clip bounds"), zeroline=True, zerolinecolor=colours.grid)
    return figure


def smoothed(values: np.ndarray, share: float = 0.04) -> np.ndarray:
    """An exponential average that starts unbiased; ``share`` of the points is its width."""
    weight = 1.0 / max(1.0, share * len(values))
    result = np.empty(len(values))
    total = norm = 0.0
    for at, value in enumerate(values):
        if math.isfinite(value):
            total = (1 - weight) * total + weight * float(value)
            norm = (1 - weight) * norm + weight
        result[at] = total / norm if norm else math.nan
    return result


def thinned(table: pd.DataFrame, most: int = MOST_DRAWN) -> pd.DataFrame:
    """At most ``most`` rows, evenly taken, the last one always among them."""
    if len(table) <= most:
        return table
    return table.iloc[np.unique(np.linspace(0, len(table) - 1, most).round().astype(int))]


def _figure(
    dark: bool, height: int | None, uirevision: object, total: int, table: pd.DataFrame
) -> go.Figure:
    figure = base_figure(dark=dark, height=height, uirevision=uirevision)
    figure.update_layout(margin={"l": 64, "r": 16, "t": 14, "b": 34})
    last = max(total, int(table["step"].max()) if len(table) else 0, 1)
    figure.update_xaxes(range=[0, last * 1.015], title_text=_("step"), title_standoff=2)
    if last <= 10:
        figure.update_xaxes(dtick=1)  # there are no half steps
    return figure


def _hidden(figure: go.Figure) -> go.Figure:
    figure.update_yaxes(showticklabels=False, showgrid=False)
    figure.update_xaxes(showticklabels=False, showgrid=False, title_text="")
    return figure


def _epoch_lines(figure: go.Figure, steps: pd.DataFrame, dark: bool) -> None:
    """A hairline where each epoch begins, while there are few enough to tell apart."""
    first = steps.groupby("epoch")["step"].min().iloc[1:]
    for step in first if len(first) <= 12 else ():
        figure.add_vline(x=float(step) - 0.5, line={"color": palette(dark).grid, "width": 1.5})


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.10)"
