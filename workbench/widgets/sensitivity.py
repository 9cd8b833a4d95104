"""The sensitivity chart: a bar a layer; click a bar, or select several, to toggle."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import ipywidgets as w
import traitlets

from workbench.charts import QUANTITIES, sensitivity_chart
from workbench.charts.sensitivity import below_threshold
from workbench.charts.text import _, ngettext
from workbench.engine.errors import WrongValue
from workbench.widgets import figures
from workbench.widgets.chart import Chart
from workbench.widgets.view import SessionView, bar, button

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.studio.session import Session


class SensitivityChart(SessionView):
    """How much each layer suffers when it is quantised; clicking a bar toggles its layer.

    ``selected`` is the name of the outlined layer ("" for none).
    """

    selected = traitlets.Unicode("")

    def __init__(self, session: Session, quantity: str = "error", dark: bool | None = None) -> None:
        if quantity not in QUANTITIES:
            raise WrongValue(
                f"there is nothing to draw that is called {quantity!r}",
                where="quantity",
                hint=f"Choose one of {', '.join(QUANTITIES)}.",
            )
        self.session = session
        self._dark = dark
        self.quantity = w.Dropdown(
            options=[(_(spec.title), key) for key, spec in QUANTITIES.items()],
            value=quantity,
            tooltip=_("chart shows"),
            layout=w.Layout(width="230px"),
        )
        self.order = w.Dropdown(
            options=[(_("execution order"), "execution"), (_("worst first"), "sorted")],
            tooltip=_("order"),
            layout=w.Layout(width="150px"),
        )
        self.threshold = w.BoundedFloatText(
            value=0.99,
            min=0.0,
            max=1.0,
            step=0.001,
            description=_("threshold"),
            continuous_update=False,
        )
        self.threshold.layout.width = "180px"
        self.skip = button(_("Skip them"), self._skip)
        self._shown = self._build()
        self.figure = figures.live(self._shown, dark=self.dark)
        self._bind()
        chart = Chart(self.figure, _("Chart of the layers"), session.project.name)
        controls = bar(self.quantity, self.order, self.threshold, self.skip)
        super().__init__(session, [controls, chart])
        for control in (self.quantity, self.order, self.threshold):
            control.observe(lambda _: self.refresh(), "value")
        self.observe(lambda _: self.refresh(), "selected")
        self.watch(self.refresh, "layers")
        self.refresh()

    def _build(self) -> go.Figure:
        return sensitivity_chart(
            self.session.layers,
            quantity=self.quantity.value,
            order=self.order.value,
            threshold=self.threshold.value,
            selected=[self.selected] if self.selected else [],
            dark=self.dark,
        )

    def _bind(self) -> None:
        bars = self.figure.data[0]  # the one trace that every sensitivity chart begins with
        bars.on_click(self._clicked)
        bars.on_selection(self._boxed)
        self.figure.layout.on_change(self._dragged, "shapes")

    def refresh(self) -> None:
        built = self._build()
        with self.mute():
            figures.replace(self.figure, self._shown, built, dark=self.dark)
        self._shown = built
        worse = len(below_threshold(self.session.layers, self.threshold.value))
        self.skip.description = (
            ngettext("{n} below: skip it", "{n} below: skip them", worse).format(n=worse)
            if worse
            else _("none below")
        )
        self.skip.disabled = worse == 0

    def _names(self, trace: Any, points: Any) -> list[str]:
        return [str(trace.customdata[i]) for i in points.point_inds]

    def _eligible(self, names: list[str]) -> list[str]:
        layers = self.session.layers
        able = set(layers["name"][layers["eligible"].to_numpy(dtype=bool)])
        return [name for name in names if name in able]

    def _clicked(self, trace: Any, points: Any, _state: Any = None) -> None:
        names = self._eligible(self._names(trace, points))
        if names:
            self.act(lambda: self.session.toggle(names[0]))

    def _boxed(self, trace: Any, points: Any, _selector: Any = None) -> None:
        names = self._eligible(self._names(trace, points))
        if len(names) > 1:
            layers = self.session.layers.set_index("name")["quant_enable"]
            # What the box holds becomes one thing: all skipped, or all quantised again.
            value = not bool(layers.loc[names].any())
            self.act(lambda: self.session.set_flag(names, value))
        with self.mute():
            trace.selectedpoints = None
            self.figure.layout.selections = ()

    def _dragged(self, _layout: Any, shapes: Any) -> None:
        spec = QUANTITIES[self.quantity.value]
        if self._muted or not shapes or spec.threshold is None:
            return
        line = float(shapes[0].y0)
        value = 1.0 - line if spec.threshold(0.25) == 0.75 else line
        if math.isfinite(value):
            # The chart that is shown has moved already; the new one is compared with that.
            self._shown.layout.shapes[0].update(y0=line, y1=line)
            self.threshold.value = min(max(round(value, 6), 0.0), 1.0)

    def _skip(self) -> None:
        self.act(lambda: self.session.skip_worse_than(self.threshold.value))
