"""A chart in a cell: a live figure, and its picture and its figures to take along."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as w
import plotly.graph_objects as go
import traitlets

from workbench.charts.drawn import figure_csv
from workbench.charts.text import _
from workbench.widgets import ground
from workbench.widgets.figures import live


class ChartDownloads(anywidget.AnyWidget):
    """The buttons over ``figure``; the table is made when somebody asks for it."""

    _css = Path(__file__).with_name("chart.css").read_text()
    _esm = ground.SCRIPT.read_text() + Path(__file__).with_name("chart.js").read_text()

    label = traitlets.Unicode("").tag(sync=True)
    file = traitlets.Unicode("").tag(sync=True)
    titles: Any = traitlets.List().tag(sync=True)

    def __init__(self, figure: go.FigureWidget, label: str, file: str) -> None:
        titles = [_("Download the chart as a picture"), _("Download the figures of the chart")]
        super().__init__(label=label, file=file, titles=titles)
        self._figure = figure
        self.on_msg(self._asked)

    def _asked(self, _widget: Any, content: Any, _buffers: Any) -> None:
        kind = content.get("type") if isinstance(content, dict) else None
        if kind == "csv":
            self.send({"csv": figure_csv(self._figure)})
        elif kind == "ground":
            ground.heard(content.get("dark") is True)


class Chart(w.VBox):
    """``figure`` under its two buttons; ``label`` says what it shows, and names the files.

    Of any plotly figure: as wide as the cell, and with a picture in the saved notebook.
    """

    def __init__(
        self, figure: go.Figure, label: str = "chart", project: str = "", **layout: Any
    ) -> None:
        if not isinstance(figure, go.FigureWidget):
            figure = live(figure)
        self.figure = figure
        file = re.sub(r"[^\w.-]+", "-", f"{project} {label}").strip("-")[:120]
        figure._config = {
            **figure._config, "toImageButtonOptions": {"filename": file, "scale": 2},
        }  # fmt: skip
        self.downloads = ChartDownloads(figure, label, file)
        super().__init__([self.downloads, figure], layout=w.Layout(**layout))
        self.add_class("wb-chart")

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget, and for pages without a kernel a picture (``still``)."""
        from workbench.widgets.still import with_still

        return with_still(self, super()._repr_mimebundle_(**kwargs))
