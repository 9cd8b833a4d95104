"""Bring a live FigureWidget to the state of a freshly built figure, sending only what differs."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from workbench.charts.theme import PAPER


def live(figure: go.Figure, *, dark: bool = False) -> go.FigureWidget:
    """A FigureWidget of ``figure``, on paper: its text is for one ground, the notebook has any."""
    widget = go.FigureWidget(figure)
    widget.layout.update(paper_bgcolor=PAPER[dark], autosize=True)
    widget._config = {"displaylogo": False, "responsive": True}
    return widget


def replace(
    widget: go.FigureWidget, before: go.Figure, after: go.Figure, *, dark: bool = False
) -> None:
    """Make ``widget``, which shows ``before``, show ``after`` on light or dark paper.

    Attributes that both have in common are not touched: what the user zoomed stays zoomed, and a
    toggle of one of a thousand bars does not send the hover texts of all.
    """
    kept = 0
    for old, new in zip(before.data, after.data, strict=False):
        if old.type != new.type:
            break
        kept += 1
    # Traces that stay are changed where they are: a rebuilt chart would flash, and lose its clicks.
    if kept < len(widget.data):
        widget.data = widget.data[:kept]
    with widget.batch_update():
        for shown, old, new in zip(widget.data, before.data, after.data, strict=False):
            for key, value in _changed(old, new).items():
                shown[key] = value
        for key, value in _changed(before.layout, after.layout).items():
            widget.layout[key] = value
        if widget.layout.paper_bgcolor != PAPER[dark]:
            widget.layout.paper_bgcolor = PAPER[dark]
    if kept < len(after.data):
        widget.add_traces(list(after.data[kept:]))


def _changed(old: Any, new: Any) -> dict[str, Any]:
    """Attributes of ``new`` that differ from ``old``; None for those that are gone."""
    before, after = old._props or {}, new._props or {}
    found = {key: new[key] for key in after if not _equal(before.get(key), after[key])}
    found.update({key: None for key in before if key not in after})
    return found


def _equal(left: Any, right: Any) -> bool:
    if hasattr(left, "dtype") or hasattr(right, "dtype"):
        left = left.tolist() if hasattr(left, "tolist") else left
        right = right.tolist() if hasattr(right, "tolist") else right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(
            _equal(a, b) for a, b in zip(left, right, strict=True)
        )
    return bool(left == right or (left != left and right != right))  # NaN equals NaN here
