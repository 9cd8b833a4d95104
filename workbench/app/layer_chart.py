"""The chart of the Layers tab: click toggles, a box selects, the line can be dragged."""

from __future__ import annotations

import time
from typing import Any

import panel as pn
import plotly.graph_objects as go
from panel.io import hold

from workbench.app.i18n import _
from workbench.app.plot import Plot
from workbench.app.rows import shown_layers
from workbench.app.view import View, when_drawn
from workbench.app.window import LAYERS_TAB, WindowState
from workbench.charts import sensitivity_chart, stage_strip, worst_chart
from workbench.charts.sensitivity import QUANTITIES, STAGE_STRIP_FROM
from workbench.studio.session import Session

CONFIG = {
    "displaylogo": False,
    "modeBarButtonsToRemove": ["lasso2d", "autoScale2d", "pan2d", "toImage"],
    # Two quick clicks are two toggles, not a zoom back to the whole.
    "doubleClick": False,
}
HEIGHT = 262


def dragged_threshold(relayout: Any, quantity: str) -> float | None:
    """The cosine similarity at which the line was let go, None if it was not moved."""
    spec = QUANTITIES[quantity]
    if not isinstance(relayout, dict) or spec.threshold is None:
        return None
    ends = [relayout.get(f"shapes[0].y{end}") for end in (0, 1)]
    known = [float(end) for end in ends if isinstance(end, int | float)]
    if not known:
        return None
    line = sum(known) / len(known)
    # 1 − cos on error axes, cos itself on the cosine axis: the same turn both ways.
    return min(1.0, max(-1.0, spec.threshold(line)))


class LayerChart(View):
    """One bar a layer; above 300 layers a strip by stage and the worst stand beside it."""

    def __init__(self, session: Session, window: WindowState) -> None:
        super().__init__(session, window, LAYERS_TAB)
        self.plot = Plot(
            self._figure(),
            height=HEIGHT,
            config=CONFIG,
            label=_("Chart of the layers; the table below has the same figures"),
            on_click=self.toggle,
            on_select=self._selected,
            on_shape=self._dragged,
        )
        self.strip = Plot(go.Figure(), height=200, on_click=self.choose)
        self.worst = Plot(
            go.Figure(), height=200, on_click=self.toggle, width=430, sizing_mode="fixed"
        )
        # Empty until they are needed: every plot costs the page's first paint.
        self.beside = pn.Row(visible=False, margin=0, sizing_mode="stretch_width")
        self._due = 0.0
        self.watch(session, self.update, "layers")
        self.watch(
            window,
            self.update,
            "quantity", "order", "threshold", "selected", "dark", "pattern", "type", "grouped",
        )  # fmt: skip
        self._beside()

    def _figure(self) -> Any:
        window = self.window
        return sensitivity_chart(
            shown_layers(self.session.layers, window),
            quantity=window.quantity,
            # Modules are in an order of their own, which a second sorting would undo.
            order="execution" if window.grouped else window.order,
            threshold=window.threshold,
            selected=window.selected,
            dark=window.dark,
            uirevision=f"{self.session.project.name}-{window.pattern}-{window.type}-{window.order}"
            f"-{window.grouped}",
            height=HEIGHT,
        )

    def update(self) -> None:
        """Draw after the message that is being written now.

        The figure is most of the work of a toggle: the table and the numbers need not wait for
        it, and of several toggles at once only the last is drawn.
        """
        document = pn.state.curdoc
        if document is None or not document.session_context:
            self._draw()
        elif time.monotonic() > self._due:
            # A tick that never came (a page that was just closing) must not stop the next one.
            self._due = time.monotonic() + 1.0
            document.add_next_tick_callback(self._draw_now)

    def _draw_now(self) -> None:
        self._due = 0.0
        when_drawn(lambda: self._follow(self._draw, "the layers"))

    def _draw(self) -> None:
        with hold():
            self.plot.draw(self._figure())
            self._beside()

    def _beside(self) -> None:
        shown = shown_layers(self.session.layers, self.window)
        many = len(shown) > STAGE_STRIP_FROM
        if many and not len(self.beside):
            self.beside.objects = [self.strip, self.worst]
        self.beside.visible = many
        if not many:
            return
        options: dict[str, Any] = {"quantity": self.window.quantity, "dark": self.window.dark}
        self.strip.draw(stage_strip(shown, height=200, **options))
        self.worst.draw(
            worst_chart(shown, 8, threshold=self.window.threshold, height=200, **options)
        )

    def toggle(self, name: str) -> None:
        if self.act(lambda: self.session.toggle(name)):
            self.window.notice = ""

    def choose(self, name: str) -> None:
        self.window.selected = (name,)

    def _selected(self, names: tuple[str, ...]) -> None:
        if names:
            self.window.selected = names

    def _dragged(self, changes: dict[str, Any]) -> None:
        threshold = dragged_threshold(changes, self.window.quantity)
        if threshold is None or threshold == self.window.threshold:
            self.update()  # the line may have been tilted: draw it level again
        else:
            self.window.threshold = threshold

    def __panel__(self) -> Any:
        return pn.Column(
            self.plot,
            self.beside,
            sizing_mode="stretch_width",
            margin=0,
            css_classes=["wb-layer-chart"],
            name=_("Chart of the layers"),
        )
