"""A plotly figure on the page.

Panel's own pane is not used: panel-material-ui rewrites the layout, the margins and the colour
scales of its model in the browser, and every hover is sent to the server.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import panel
import param
import plotly.graph_objects as go
from panel.custom import JSComponent

from workbench.app.i18n import _
from workbench.app.plotly_files import full_address
from workbench.app.style import VARIABLES
from workbench.charts.drawn import figure_csv

_TEXTS = ("hovertext", "customdata", "text", "ids", "labels", "parents")
_CSS = """
:host { min-width: 300px !important; }
.wb-line-near .nsewdrag { cursor: ns-resize !important; }
.wb-plot-tools { position: absolute; top: 0; left: 0; display: flex; gap: 2px; opacity: 0; }
:host(:hover) .wb-plot-tools, .wb-plot-tools:focus-within { opacity: 1; }
.wb-plot-tools button { font: inherit; font-size: 10px; line-height: 1; padding: 3px;
  color: var(--wb-muted); background: var(--panel-background-color); cursor: pointer;
  border: 1px solid var(--wb-grid); border-radius: 3px; }
.wb-plot-tools button:hover { color: var(--wb-accent); border-color: currentColor; }
.wb-plot-tools button:focus-visible { outline: 2px solid var(--wb-accent); }
.modebar--hover:focus-within .modebar-group { opacity: 1 !important; }
.modebar .modebar-btn:focus-visible { outline: 2px solid var(--wb-accent) !important; }
"""
_QUIET = {"displaylogo": False, "displayModeBar": False, "doubleClick": False}


@cache
def _plotly_css() -> str:
    """plotly.js puts its rules into the document's head, where a shadow root cannot see them."""
    return (Path(panel.__file__).parent / "dist" / "css" / "models" / "plotly.css").read_text(
        "utf-8"
    )


def _words() -> dict[str, Any]:
    """The titles of plotly's own buttons, as a locale of its configuration."""
    words = {
        "Zoom": _("zoom"), "Box Select": _("select in a box"), "Zoom in": _("zoom in"),
        "Zoom out": _("zoom out"), "Reset axes": _("show all of it"),
    }  # fmt: skip
    return {"locale": "reader", "locales": {"reader": {"dictionary": words}}}


class Plot(JSComponent):
    """Shows one figure; ``draw`` replaces it. Both it and its figures can be downloaded.

    Treemaps and icicles are ``hierarchical``: they need more of plotly.js than the page loads.
    ``on_click`` hears the name (``customdata``) of a clicked point, ``on_select`` the names in a
    selection box, ``on_shape`` the changed attributes of a shape that was dragged.
    """

    figure = param.String(default="")
    texts = param.String(default="[]")
    config = param.Dict(default=_QUIET)
    label = param.String(default="")
    png = param.String(default="")
    csv = param.String(default="")
    library = param.String(default="")

    _esm: ClassVar[Path] = Path(__file__).with_name("plot.js")

    def __init__(
        self,
        figure: go.Figure,
        *,
        height: int,
        hierarchical: bool = False,
        on_click: Callable[[str], None] | None = None,
        on_select: Callable[[tuple[str, ...]], None] | None = None,
        on_shape: Callable[[dict[str, Any]], None] | None = None,
        **params: Any,
    ) -> None:
        params.setdefault("sizing_mode", "stretch_width")
        params.setdefault("margin", 0)
        params["config"] = {**params.get("config", _QUIET), **_words()}
        super().__init__(
            height=height,
            stylesheets=[_plotly_css(), VARIABLES, _CSS],
            png=_("Download the chart as a picture"),
            csv=_("Download the figures of the chart"),
            library=full_address() if hierarchical else "",
            **params,
        )
        self._on_click = on_click
        self._on_select = on_select
        self._on_shape = on_shape
        self.draw(figure)

    def draw(self, figure: go.Figure) -> None:
        """Show ``figure`` in place of the last one; only what differs is sent."""
        self._drawn = figure
        content = json.loads(figure.to_json())
        texts = [
            {key: trace.pop(key) for key in _TEXTS if key in trace} for trace in content["data"]
        ]
        while texts and not texts[-1]:  # a legend entry more or less must not resend the others
            texts.pop()
        self.param.update(
            figure=json.dumps(content, separators=(",", ":")),
            texts=json.dumps(texts, separators=(",", ":")),
        )

    def _handle_msg(self, msg: Any) -> None:
        if not isinstance(msg, dict):
            return
        kind = msg.get("type")
        if kind == "click" and self._on_click and isinstance(msg.get("name"), str):
            self._on_click(msg["name"])
        elif kind == "select" and self._on_select and isinstance(msg.get("names"), list):
            self._on_select(tuple(name for name in msg["names"] if isinstance(name, str)))
        elif kind == "shape" and self._on_shape and isinstance(msg.get("changes"), dict):
            self._on_shape(msg["changes"])
        elif kind == "csv":
            self._send_msg({"csv": figure_csv(self._drawn)})
