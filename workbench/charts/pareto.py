"""Metric against cost: what every trial of a project costs, and which no other one beats."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from workbench.charts import formats
from workbench.charts.search import stay_float, within_target
from workbench.charts.text import N_, _
from workbench.charts.theme import base_figure, note, palette

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CostAxis:
    """What the trials are compared by; ``column`` of the trials, "" for figures of files."""

    column: str
    title: str
    text: Callable[[float | None], str]


COSTS: dict[str, CostAxis] = {
    "size": CostAxis("size", N_("size"), formats.size),
    "bops": CostAxis("bops", N_("bit-operations a sample"), formats.bit_operations),
    "latency": CostAxis("", N_("latency of a batch, ms"), lambda ms: f"{ms:.2f} ms"),
}


def front(costs: Floats, metrics: Floats) -> list[int]:
    """Points that no other one beats in both, cheapest first; of equal points the first.

    A lower cost and a higher metric are better; a point with a NaN is on no front.
    """
    order = sorted(
        (i for i in range(len(costs)) if np.isfinite(costs[i]) and np.isfinite(metrics[i])),
        key=lambda i: (costs[i], -metrics[i], i),
    )
    chosen: list[int] = []
    for i in order:
        if not chosen or metrics[i] > metrics[chosen[-1]]:
            chosen.append(i)
    return chosen


def trial_points(trials: pd.DataFrame, cost: str, target_loss: float) -> pd.DataFrame:
    """Columns x, metric, name (the trial's number), good, whole, text; each configuration once.

    Of several trials with the same figures the last one counts. ``whole``: every sample was
    evaluated, so the metric is no estimate.
    """
    rows = trials.assign(good=within_target(trials, target_loss)) if len(trials) else trials
    if not len(rows) or COSTS[cost].column not in rows:
        return pd.DataFrame(columns=["x", "metric", "name", "good", "whole", "text"])
    rows = rows[np.isfinite(rows["metric"].astype(float)) & np.isfinite(rows[COSTS[cost].column])]
    rows = rows.drop_duplicates([COSTS[cost].column, "metric"], keep="last")
    return pd.DataFrame(
        {
            "x": rows[COSTS[cost].column].astype(float).to_numpy(),
            "metric": rows["metric"].astype(float).to_numpy(),
            "name": [str(trial) for trial in rows["trial"].tolist()],
            "good": rows["good"].to_numpy(dtype=bool),
            "whole": rows["share"].to_numpy() >= 1.0,
            "text": [
                f"<b>{_('trial')} {trial}</b> · {stay_float(count)}"
                for trial, count in zip(rows["trial"].tolist(), rows["n_float"], strict=True)
            ],
        }
    )


def file_points(files: Iterable[Any], metric_float: float, target_loss: float) -> pd.DataFrame:
    """The same of exported files (kind, metric, latency_ms) that were measured."""
    known = [x for x in files if x.metric is not None and x.latency_ms is not None]
    return pd.DataFrame(
        {
            "x": [float(x.latency_ms) for x in known],
            "metric": [float(x.metric) for x in known],
            "name": ["" for x in known],
            "good": [not metric_float - x.metric > target_loss + 1e-9 for x in known],
            "whole": [True for x in known],
            "text": [f"<b>{escape(str(x.kind))}</b>" for x in known],
        }
    )


def pareto_chart(
    trials: pd.DataFrame,
    target_loss: float,
    *,
    cost: str = "size",
    files: Iterable[Any] = (),
    metric_name: str = "metric",
    metric_float: float = math.nan,
    dark: bool = False,
    uirevision: object = "pareto",
    height: int | None = 280,
) -> go.Figure:
    """Metric against ``cost`` (a key of ``COSTS``); the points that no other beats are joined.

    ``trials`` as in the session; ``files`` are exported files, drawn for "latency" only.
    Estimates from a part of the samples are hollow and never on the line. ``customdata`` of a
    point is its trial's number.
    """
    axis, colours = COSTS[cost], palette(dark)
    figure = base_figure(dark=dark, height=height, uirevision=f"{uirevision}-{cost}")
    figure.update_layout(margin={"l": 64, "r": 72, "t": 26, "b": 40})
    points = (
        file_points(files, metric_float, target_loss)
        if cost == "latency"
        else trial_points(trials, cost, target_loss)
    )
    scale = formats.metric_scale(metric_name)
    whole = points[points["whole"].astype(bool)]
    best = front(whole["x"].to_numpy(dtype=float), whole["metric"].to_numpy(dtype=float))
    if len(best) > 1:
        figure.add_scatter(
            x=whole["x"].to_numpy()[best],
            y=scale * whole["metric"].to_numpy()[best],
            mode="lines",
            name=_("not beaten in both"),
            line={"color": colours.accent, "width": 2},
            hoverinfo="skip",
        )
    for good, title, symbol, colour in (
        (True, N_("within the target"), "circle", colours.good),
        (False, N_("loses too much"), "x", colours.bad),
    ):
        rows = points[points["good"].astype(bool) == good]
        if not len(rows):
            continue
        figure.add_scatter(
            x=rows["x"],
            y=scale * rows["metric"],
            mode="markers+text" if cost == "latency" else "markers",
            text=rows["text"].tolist() if cost == "latency" else None,
            textposition="top center",
            cliponaxis=False,
            name=_(title),
            customdata=np.asarray(rows["name"], dtype=object),
            hovertext=[
                f"{text}<br>{axis.text(x)} · {formats.metric_title(metric_name)} "
                f"{formats.metric(metric, metric_name)}"
                + ("" if sure else f"<br>{_('estimated from a part of the samples')}")
                for text, x, metric, sure in zip(
                    rows["text"], rows["x"], rows["metric"], rows["whole"], strict=True
                )
            ],
            hovertemplate="%{hovertext}<extra></extra>",
            marker={
                "symbol": [symbol if sure else f"{symbol}-open" for sure in rows["whole"].tolist()],
                "size": 10,
                "color": colour,
                "line": {"width": 1, "color": colour},
            },
        )
    if math.isfinite(metric_float) and len(points):
        target = scale * (metric_float - target_loss)
        figure.add_hline(y=target, line={"color": colours.text, "dash": "dash", "width": 1.5})
    figure.update_xaxes(title_text=_(axis.title), **_ticks(points, axis))
    figure.update_yaxes(
        title_text=formats.metric_title(metric_name), **formats.metric_axis(metric_name)
    )
    if not len(points):
        missing = _("No measured file yet: press Export")
        note(figure, missing if cost == "latency" else _("No trial yet"), dark=dark)
        figure.update_yaxes(showticklabels=False)
        figure.update_xaxes(showticklabels=False)
    return figure


def _ticks(points: pd.DataFrame, axis: CostAxis) -> dict[str, Any]:
    """Room on both sides, and ticks with units (plotly knows no kB and no GBOP)."""
    if not len(points):
        return {}
    low, high = float(points["x"].min()), float(points["x"].max())
    room = 0.06 * (high - low) or 0.1 * high or 1.0
    if not axis.column:
        return {"range": [min(low, 0.0), high + room]}
    places = np.linspace(low, high, 5) if high > low else np.array([low])
    return {
        "range": [low - room, high + room],
        "tickvals": places.tolist(),
        "ticktext": [axis.text(float(place)) for place in places],
    }
