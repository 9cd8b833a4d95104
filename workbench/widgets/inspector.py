"""One layer in a notebook: its distributions, and the ways to quantise it side by side."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import ipywidgets as w
import plotly.graph_objects as go

from workbench.charts import (
    comparison_frame,
    error_chart,
    layer_histogram_chart,
    output_scatter,
    weight_range_chart,
)
from workbench.charts.comparison import kind_text, label_text
from workbench.charts.text import N_, _
from workbench.studio.inspections import in_use
from workbench.widgets import figures
from workbench.widgets.chart import Chart
from workbench.widgets.job_bar import JobBar
from workbench.widgets.view import SessionView, bar, button

if TYPE_CHECKING:
    from workbench.studio.inspections import Inspection
    from workbench.studio.session import Session

HEIGHT = 230
# A figure made while it is hidden cannot ask for its room: three small ones stand below a wide one.
WIDE, SMALL = 930, 310
EMPTY = N_(
    "Press Compare: it quantises this layer alone with every algorithm and measures what each "
    "does to its output."
)


class LayerInspector(SessionView):
    """Choose a layer, compare the algorithms on it, look at the charts, use one.

    ``layer`` is the name to begin with; None: the first that can be quantised. Errors:
    ``WrongValue`` for an unknown layer.
    """

    def __init__(
        self, session: Session, layer: str | None = None, dark: bool | None = None
    ) -> None:
        self.session = session
        self._dark = dark
        self._inspection: Inspection | None = None
        self._drawn: tuple[Any, ...] = ()
        self.layer = w.Dropdown(options=self._names(), description=_("layer"))
        self.layer.layout.width = "380px"
        if layer is not None:
            session.row(layer)  # says so when there is no such layer
            self.layer.value = layer if layer in self.layer.options else None
        self.compare = button(_("Compare"), self._start, style="primary")
        self.ada = w.Checkbox(
            value=False, indent=False, description=_("learn the rounding too (ADA)")
        )
        self.ada.layout.width = "220px"
        self.steps = w.BoundedIntText(value=1000, min=1, max=10**6, description=_("steps"))
        self.steps.layout.width = "170px"
        self.bar = JobBar(session, kinds=("inspect",))
        self.empty = w.HTML(f'<span class="wb-note">{html.escape(_(EMPTY))}</span>')
        self.table = w.HTML()
        self.choice = w.Dropdown(description=_("use"))
        self.choice.layout.width = "380px"
        self.use = button(_("Use this"), self._use)
        self._figures = [go.Figure() for _ in range(4)]
        self.charts = [figures.live(figure, dark=self.dark) for figure in self._figures]
        titles = (
            _("Input and weights"), _("Weights by output channel"), _("Error of the output"),
            _("Quantised against float"),
        )  # fmt: skip
        shown = [
            Chart(figure, title, session.project.name)
            for figure, title in zip(self.charts, titles, strict=True)
        ]
        self.results = w.VBox(
            [
                shown[0],
                bar(*shown[1:]),
                self.table,
                bar(self.choice, self.use),
            ]
        )
        controls = bar(self.layer, self.compare, self.ada, self.steps)
        super().__init__(session, [controls, self.bar, self.empty, self.results])
        self.layer.observe(lambda _: self.refresh(), "value")
        self.watch(self.refresh, "layers", "inspected", "job")
        self.refresh()

    def _names(self) -> list[str]:
        layers = self.session.layers
        return [str(n) for n in layers["name"][layers["eligible"]]] if len(layers) else []

    def _start(self) -> None:
        algorithms = ["ifmr", "hfmg", "minmax", "arq_quantize"]
        if self.ada.value:
            algorithms.append("ada_quantize")
        name, steps = self.layer.value, self.steps.value
        self.act(
            lambda: self.session.inspect(
                name, algorithms=algorithms, ada_iterations=steps, wait=False
            )
        )

    def _use(self) -> None:
        found, row = self._inspection, self.choice.value
        if found is not None and row is not None:
            one = found.alternatives[row]
            self.act(lambda: self.session.use(found.name, one.settings))

    def refresh(self) -> None:
        names = self._names()
        if list(self.layer.options) != names:
            chosen = self.layer.value
            with self.mute():
                self.layer.options = names
                if names:
                    self.layer.value = chosen if chosen in names else names[0]
        job, name = self.session.job, self.layer.value
        self.compare.disabled = name is None or (job is not None and job.active)
        when = self.session.inspected.get(name)
        found = self._inspection
        if when is None:
            self._inspection = found = None
        elif found is None or (found.name, found.time) != (name, when):
            self._inspection = found = self.session.inspection(name)
        self.empty.layout.display = "" if found is None else "none"
        self.results.layout.display = "none" if found is None else ""
        if found is not None:
            self._draw(found)

    def _draw(self, found: Inspection) -> None:
        row = self.session.layers.iloc[self.session.row(found.name)]
        used = [in_use(one.settings, row) for one in found.alternatives]
        self.table.value = table_html(found, used)
        options = [
            (f"{label_text(one.label)} ({kind_text(one.kind)})", index)
            for index, (one, now) in enumerate(zip(found.alternatives, used, strict=True))
            if one.settings and not now and not one.trouble
        ]
        if list(self.choice.options) != options:
            self.choice.options = options
            self.choice.index = 0 if options else None
        self.use.disabled = not options
        if self._drawn == (found.name, found.time, self.dark):
            return
        self._drawn = (found.name, found.time, self.dark)
        style: dict[str, Any] = {"dark": self.dark, "height": HEIGHT}
        fresh = [
            layer_histogram_chart(found.profile.histogram, **style),
            weight_range_chart(found.profile, **style),
            error_chart(found.profile, **style),
            output_scatter(found.profile, **style),
        ]
        for figure, width in zip(fresh, (WIDE, SMALL, SMALL, SMALL), strict=True):
            figure.update_layout(width=width, autosize=False)
        for live, old, new in zip(self.charts, self._figures, fresh, strict=True):
            figures.replace(live, old, new, dark=self.dark)
        self._figures = fresh


def table_html(found: Inspection, used: list[bool]) -> str:
    """The alternatives as an HTML table."""
    frame = comparison_frame(found.alternatives, used)
    titles = (
        _("algorithm"), _("of"), _("scale"), _("offset"), "1 − cos", "SQNR", _("time"), "",
    )  # fmt: skip
    head = "".join(f"<th>{title}</th>" for title in titles)
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in frame.itertuples(index=False)
    ]
    return f'<table class="wb-table"><tr>{head}</tr>{"".join(lines)}</table>'
