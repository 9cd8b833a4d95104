"""A view as it looks now, for a page without a kernel: a saved notebook, made HTML by nbconvert.

Charts are pictures, tables are tables. Buttons and fields are left out, they could do nothing, and
so is the progress of a job, which would stand still.
"""

from __future__ import annotations

import html
import logging
from typing import Any

import ipywidgets as w

from workbench.charts.picture import figure_svg
from workbench.charts.theme import PAPER
from workbench.widgets.chart import Chart
from workbench.widgets.job_bar import JobBar

logger = logging.getLogger("workbench.widgets")

LARGEST = 300_000
"""Letters of one picture: a chart of very many points is left out rather than kept in each file."""


def with_still(widget: w.Widget, bundle: Any) -> Any:
    """What Jupyter shows of a widget, ``bundle``, with its HTML for pages without a kernel."""
    try:
        bundle["text/html"] = still_html(widget)
    except Exception:  # the widget itself must appear all the same
        logger.exception("no picture of %s for a saved notebook", type(widget).__name__)
    return bundle


def still_html(widget: w.Widget) -> str:
    """What ``widget`` and its parts show, as HTML; empty for what is hidden."""
    if isinstance(widget, JobBar) or getattr(widget.layout, "display", None) == "none":
        return ""
    if isinstance(widget, Chart):
        return _chart(widget)
    if isinstance(widget, w.HTML):
        return f"<div{_width(widget)}>{widget.value}</div>" if widget.value else ""
    if isinstance(widget, w.Checkbox):
        tick = "☑" if widget.value else "☐"
        return "" if widget.description else f"<span{_width(widget)}>{tick}</span>"
    if isinstance(widget, w.Button):
        name = f"<span{_width(widget)}>{html.escape(widget.description)}</span>"
        return name if "wb-name" in widget._dom_classes else ""
    if isinstance(widget, w.Tab):
        return _tabs(widget)
    if isinstance(widget, w.Accordion) and widget.selected_index is None:
        return ""
    parts = [still_html(child) for child in getattr(widget, "children", ())]
    inside = "".join(parts)
    if isinstance(widget, w.HBox) and inside:
        return f'<div style="display:flex;align-items:baseline">{inside}</div>'
    return inside


def _width(widget: w.Widget) -> str:
    width = html.escape(str(widget.layout.width or "auto"))
    return f' style="flex:0 0 {width};overflow:hidden"' if width.endswith("px") else ""


def _chart(chart: Chart) -> str:
    label = chart.downloads.label
    dark = chart.figure.layout.paper_bgcolor == PAPER[True]
    picture = figure_svg(chart.figure, dark=dark, label=label)
    if len(picture) > LARGEST:
        return ""
    return f"<div><b>{html.escape(label)}</b><br>{picture}</div>"


def _tabs(tabs: w.Tab) -> str:
    pairs = zip(tabs.titles, tabs.children, strict=False)
    found = [(title, still_html(child)) for title, child in pairs]
    return "".join(f"<h4>{html.escape(title)}</h4>{inside}" for title, inside in found if inside)
