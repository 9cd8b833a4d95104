"""A network of many layers at a glance: a heat strip by stage, and the few worst layers."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.charts import formats
from workbench.charts.drawn import exact_values
from workbench.charts.sensitivity import (
    QUANTITIES,
    axis_range,
    bar_heights,
    bar_states,
    hover_texts,
    quantity_values,
    short_name,
    state_fill,
    worst_first,
)
from workbench.charts.text import _
from workbench.charts.theme import POWERS, base_figure, log_scale, note, with_gaps


def stage_of(name: str, depth: int = 1) -> str:
    """The stage of a layer: the first ``depth`` parts of its module path."""
    return ".".join(name.split(".")[:depth])


def _stages(names: list[str], limit: int = 24) -> list[str]:
    """Stage of each layer, as deep a path as still leaves a few layers to a stage."""
    best = [stage_of(name) for name in names]
    for depth in (2, 3, 4):
        stages = [stage_of(name, depth) for name in names]
        if len(set(stages)) > min(limit, max(2, len(names) // 3)):
            break
        best = stages
    return best


def stage_strip(
    layers: pd.DataFrame,
    *,
    quantity: str = "error",
    dark: bool = False,
    uirevision: object = "stages",
    height: int | None = None,
) -> go.Figure:
    """Heat strip: a row per stage, a cell per layer in execution order; nothing is averaged away.

    ``customdata`` holds the layer's name in each cell ("" where a row is shorter).
    """
    spec = QUANTITIES[quantity]
    names = [str(name) for name in layers["name"]]
    stages = _stages(names)
    order = list(dict.fromkeys(stages))
    groups: dict[str, list[int]] = {stage: [] for stage in order}
    for row, stage in enumerate(stages):
        groups[stage].append(row)
    width = max((len(rows) for rows in groups.values()), default=0)
    heat = np.full((len(order), width), np.nan)
    who = np.full((len(order), width), "", dtype=object)
    values = quantity_values(layers, quantity)
    hover = np.full((len(order), width), "", dtype=object)
    for line, stage in enumerate(order):
        for column, row in enumerate(groups[stage]):
            value = values[row]
            if spec.log:
                value = math.log10(value) if value > 0 else np.nan
            heat[line, column] = value
            who[line, column] = names[row]
            hover[line, column] = f"<b>{names[row]}</b><br>{formats.exact(values[row])}"
    figure = base_figure(
        dark=dark, height=height or 60 + min(360, 18 * max(len(order), 2)), uirevision=uirevision
    )
    scale = log_scale(dark)
    figure.add_heatmap(
        z=with_gaps(heat),
        y=order,
        customdata=who,
        text=hover,
        hovertemplate="%{text}<extra></extra>",
        colorscale=scale if spec.worse >= 0 else [[1 - at, c] for at, c in reversed(scale)],  # type: ignore[operator]
        colorbar={
            "title": {"text": ("log₁₀ " if spec.log else "") + _(spec.title)},
            "thickness": 10,
        },
        xgap=1,
        ygap=2,
        hoverongaps=False,
    )
    figure.update_yaxes(autorange="reversed", type="category", automargin=True)
    figure.update_xaxes(showticklabels=False, showgrid=False)
    return figure


def worst_chart(
    layers: pd.DataFrame,
    k: int = 20,
    *,
    quantity: str = "error",
    threshold: float = 0.99,
    dark: bool = False,
    uirevision: object = "worst",
    height: int | None = None,
) -> go.Figure:
    """The ``k`` worst measured layers as horizontal bars, worst on top; ``customdata`` = name."""
    spec = QUANTITIES[quantity]
    rows = worst_first(layers, quantity)
    rows = rows[~np.isnan(quantity_values(layers, quantity)[rows])][:k]
    table = layers.iloc[rows]
    states = bar_states(table, threshold)
    values = quantity_values(table, quantity)
    figure = base_figure(dark=dark, height=height or 60 + 18 * max(len(rows), 3))
    figure.update_layout(uirevision=f"{uirevision}-{quantity}")
    low, high = axis_range(values, spec, None)
    lengths, base = bar_heights(values, spec, low, high)
    figure.add_bar(
        orientation="h",
        x=lengths,
        base=base,
        meta=exact_values(base + lengths, values),
        y=np.arange(len(table)),
        customdata=np.asarray(table["name"], dtype=object),
        hovertext=hover_texts(table),
        hovertemplate="%{hovertext}<extra></extra>",
        marker=state_fill(states, dark),
        showlegend=False,
    )
    figure.update_xaxes(
        type="log" if spec.log else "linear", range=[low, high], title_text=_(spec.title)
    )
    if spec.log:
        figure.update_xaxes(**POWERS)
    figure.update_yaxes(
        tickvals=list(range(len(table))),
        ticktext=[short_name(str(name), 24) for name in table["name"]],
        range=[max(len(table), 1) - 0.4, -0.6],
        automargin=True,
    )
    figure.update_layout(hovermode="y", meta={"click": "rows"})
    if not len(table):
        note(figure, _("Nothing measured yet: press Analyse"), dark=dark)
    return figure
