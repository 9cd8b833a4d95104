"""A search as it runs: the metric of every trial, and the bracket closing in on the answer."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.charts import formats
from workbench.charts.sensitivity import short_name
from workbench.charts.text import N_, _, ngettext
from workbench.charts.theme import base_figure, hatch, note, palette

_GROUPS = (
    # kind, satisfied, title, symbol, colour
    ("float", None, N_("float model"), "diamond", "float"),
    ("search", True, N_("within the target"), "circle", "good"),
    ("search", False, N_("loses too much"), "x", "bad"),
    ("final", True, N_("result"), "star", "accent"),
    ("final", False, N_("result misses the target"), "star-open", "bad"),
)


def within_target(trials: pd.DataFrame, target_loss: float) -> list[bool]:
    """Whether each trial loses at most ``target_loss``; as it was judged where no loss is known."""
    return [
        loss <= target_loss + 1e-9 if math.isfinite(loss) else bool(satisfied)
        for loss, satisfied in zip(trials["loss"].tolist(), trials["satisfied"], strict=True)
    ]


def _group_mask(
    trials: pd.DataFrame, kind: str, satisfied: bool | None, target_loss: float
) -> pd.Series:
    kinds = trials["kind"].astype(str)
    if kind == "search":  # everything that is judged: all layers quantised, and each cut tried
        mask = ~kinds.isin(["float", "final"])
    else:
        mask = kinds == kind
    if satisfied is not None:
        mask &= np.array(within_target(trials, target_loss)) == satisfied
    return mask


def search_chart(
    trials: pd.DataFrame,
    target_loss: float,
    *,
    metric_name: str = "metric",
    metric_float: float = math.nan,
    dark: bool = False,
    uirevision: object = "search",
    height: int | None = 280,
) -> go.Figure:
    """Metric by trial with the line that a trial must reach.

    ``trials`` has a row per trial (columns of the session's ``trials``). Without metric values
    (cosine-similarity searches have none) the loss is drawn instead, and the line lies at
    ``target_loss``.
    """
    colours = palette(dark)
    figure = base_figure(dark=dark, height=height, uirevision=uirevision)
    figure.update_layout(margin={"l": 64, "r": 72, "t": 26, "b": 40})
    last = float(trials["trial"].max()) if len(trials) else 1.0
    figure.update_xaxes(title_text=_("trial"), range=[-0.6, last + 0.6], dtick=_tick(len(trials)))
    metrics = np.asarray(trials["metric"], dtype=np.float64) if len(trials) else np.empty(0)
    floats = metrics[np.asarray(trials["kind"] == "float")] if len(trials) else np.empty(0)
    if not math.isfinite(metric_float) and floats.size:
        metric_float = float(floats[0])
    by_metric = bool(np.isfinite(metrics).any()) or (
        not len(trials) and math.isfinite(metric_float)
    )
    column = "metric" if by_metric else "loss"
    scale = formats.metric_scale(metric_name)  # of the loss, too, which is in points
    for kind, satisfied, title, symbol, colour in _GROUPS:
        rows = trials[_group_mask(trials, kind, satisfied, target_loss)] if len(trials) else trials
        if not len(rows):
            continue
        figure.add_scatter(
            x=rows["trial"],
            y=scale * np.asarray(rows[column], dtype=np.float64),
            mode="markers",
            name=_(title),
            customdata=np.asarray(rows["trial"], dtype=np.int64),
            hovertext=_trial_texts(rows, metric_name),
            hovertemplate="%{hovertext}<extra></extra>",
            marker={
                "symbol": symbol,
                "size": 15 if kind == "final" else 11,
                "color": getattr(colours, colour),
                "line": {"width": 1, "color": getattr(colours, colour)},
            },
        )
    target = metric_float - target_loss if by_metric else target_loss
    if math.isfinite(target):
        shown = (
            formats.metric(target, metric_name) if by_metric else formats.loss(target, metric_name)
        )
        line = {"color": colours.text, "dash": "dash", "width": 1.5}
        figure.add_hline(y=scale * target, line=line)
        # Beside the plot, where it cannot cover a trial.
        figure.add_annotation(
            x=1,
            xref="paper",
            xanchor="left",
            xshift=4,
            y=scale * target,
            text=_("target") + "<br>" + shown,
            align="left",
            showarrow=False,
            font={"size": 11, "color": colours.text},
        )
    figure.update_yaxes(
        title_text=formats.metric_title(metric_name) if by_metric else _("loss"),
        **formats.metric_axis(metric_name),
    )
    if not len(trials):
        note(figure, _("No trial yet: press Start"), dark=dark)
        figure.update_yaxes(showticklabels=False)
        figure.update_xaxes(showticklabels=False)
    return figure


def _tick(count: int) -> int:
    return max(1, 10 ** max(0, int(math.log10(max(count, 1) / 2)))) if count > 20 else 1


def _trial_texts(rows: pd.DataFrame, metric_name: str) -> list[str]:
    texts = []
    for row in rows.itertuples(index=False):
        layers = list(row.float_layers)
        shown = ", ".join(layers[:6]) + (" …" if len(layers) > 6 else "")
        metric = row.metric if row.metric is not None else math.nan
        texts.append(
            f"<b>{_('trial')} {row.trial}</b> · {phase_title(row.phase)}<br>"
            f"{formats.metric_title(metric_name)} {formats.metric(metric, metric_name)} · "
            f"{_('loss')} {formats.loss(row.loss, metric_name)}<br>"
            + stay_float(row.n_float)
            + (f": {shown}" if shown else "")
            + f"<br>{row.seconds:.1f} s"
            + _how(getattr(row, "share", 1.0), getattr(row, "cached", False))
        )
    return texts


def _how(share: float, cached: bool) -> str:
    early = _("decided by {share} % of the samples").format(share=f"{100 * share:.0f}")
    return (f" · {early}" if share < 1.0 else "") + (f" · {_('known before')}" if cached else "")


def stay_float(count: int) -> str:
    """``3 layers stay float``."""
    return ngettext("{n} layer stays float", "{n} layers stay float", count).format(n=count)


def phase_title(phase: str) -> str:
    """A phase of a search as a person calls it."""
    return {
        "original": _("float model"),
        "calibration": _("calibration"),
        "all": _("all quantised"),
        "sensitivity": _("sensitivity"),
        "search": _("search"),
        "speculative": _("ahead of the search"),
        "final": _("calibrated"),
        "evaluate": _("calibrated"),
    }.get(phase, phase)


def bracket_strip(
    ranking: Sequence[str],
    bracket: tuple[int, int] | None,
    *,
    cut: int | None = None,
    pins: Mapping[str, bool] | None = None,
    best: Collection[str] | None = None,
    dark: bool = False,
    uirevision: object = "bracket",
    height: int | None = 96,
) -> go.Figure:
    """The layers from most to least sensitive, and where the search stands among them.

    Layers before ``bracket[0]`` must stay float, those from ``bracket[1]`` on can be quantised,
    between them it is open. ``cut``: number of float layers of the trial that runs now. ``pins``:
    layers that are held quantised or float, whatever their place. ``best``: the float layers of the
    best trial so far, drawn instead of the bracket when they are not the first of the ranking.
    Trace 0 names all layers in order, for clicks.
    """
    colours = palette(dark)
    figure = base_figure(dark=dark, height=height, uirevision=uirevision)
    figure.update_layout(margin={"l": 16, "r": 16, "t": 26, "b": 26}, barmode="overlay")
    figure.update_yaxes(visible=False, range=[0, 1], fixedrange=True)
    figure.update_xaxes(showgrid=False, showticklabels=False, fixedrange=True)
    if not ranking:
        note(figure, _("The layers are not ranked yet"), dark=dark)
        figure.update_xaxes(visible=False)
        return figure
    count = len(ranking)
    low, high = bracket if bracket is not None else (0, count)
    figure.update_layout(meta={"click": "columns"})
    figure.add_scatter(
        x=np.arange(count),
        y=np.full(count, 0.5),
        mode="markers",
        marker={"opacity": 0},
        customdata=np.asarray(ranking, dtype=object),
        hoverinfo="skip",
        showlegend=False,
    )
    held = pins or {}
    free = [i for i in range(count) if ranking[i] not in held]
    linear = best is None or set(ranking[: len(best)]) == set(best)
    floats = set(ranking[:low] if linear else best or ())
    opened = set(ranking[low:high] if linear else ())
    closed = _("can be quantised") if linear else _("quantised in the best trial so far")
    parts: tuple[tuple[str, list[int], str, str], ...] = (
        (
            "skipped",
            [i for i in free if ranking[i] in floats],
            colours.skipped,
            _("stays float") if linear else _("float in the best trial so far"),
        ),
        ("open", [i for i in free if ranking[i] in opened], colours.ineligible, _("still open")),
        (
            "quantised",
            [i for i in free if ranking[i] not in floats | opened],
            colours.quantised,
            closed,
        ),
        (
            "pinned",
            [i for i in range(count) if held.get(ranking[i]) is True],
            colours.pinned,
            _("pinned, quantised"),
        ),
        (
            "pinned_float",
            [i for i in range(count) if held.get(ranking[i]) is False],
            colours.pinned_float,
            _("pinned, stays float"),
        ),
    )
    for state, places, colour, title in parts:
        if not places:
            continue
        names = [ranking[i] for i in places]
        figure.add_bar(
            x=places,
            y=np.ones(len(places)),
            name=title,
            width=0.92,
            customdata=np.asarray(names, dtype=object),
            hovertext=[
                f"<b>{name}</b><br>{_('place {n}').format(n=i + 1)} · {title}"
                for i, name in zip(places, names, strict=True)
            ],
            hovertemplate="%{hovertext}<extra></extra>",
            marker={
                "color": colour,
                "pattern": hatch(state, dark),
            },
        )
    for edge in {low, high} if linear else ():
        figure.add_vline(x=edge - 0.5, line={"color": colours.text, "width": 2})
    if cut is not None:
        figure.add_vline(x=cut - 0.5, line={"color": colours.accent, "width": 3, "dash": "dot"})
    figure.update_xaxes(range=[-0.7, count - 0.3])
    for place, anchor, text in (
        (0, "left", _("most sensitive: {layer}").format(layer=short_name(ranking[0], 28))),
        (1, "right", _("least: {layer}").format(layer=short_name(ranking[-1], 28))),
    ):
        figure.add_annotation(
            x=place,
            xref="paper",
            xanchor=anchor,
            y=0,
            yref="paper",
            yanchor="top",
            text=text,
            showarrow=False,
            font={"size": 11, "color": colours.muted},
        )
    return figure
