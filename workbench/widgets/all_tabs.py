"""The whole workbench in one cell."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import ipywidgets as w
import traitlets

from workbench.charts import formats
from workbench.charts.spoken import said
from workbench.charts.text import _
from workbench.widgets.decomposition_panel import DecompositionPanel
from workbench.widgets.export_panel import ExportPanel
from workbench.widgets.formats_panel import FormatsPanel
from workbench.widgets.inspector import LayerInspector
from workbench.widgets.job_bar import JobBar
from workbench.widgets.layer_table import LayerTable
from workbench.widgets.netron_view import NetronView
from workbench.widgets.pruning_panel import PruningPanel
from workbench.widgets.search_monitor import SearchMonitor
from workbench.widgets.sensitivity import SensitivityChart
from workbench.widgets.train_monitor import TrainMonitor
from workbench.widgets.view import SessionView, button

if TYPE_CHECKING:
    from workbench.studio.session import Session
    from workbench.studio.state import Summary


class Workbench(SessionView):
    """All parts in tabs, from the table of layers to the exported graph, under the live figures."""

    def __init__(self, session: Session, *, dark: bool | None = None) -> None:
        self.summary = w.HTML()
        self.analyse = button(
            _("Analyse"), lambda: self.act(lambda: session.analyse(wait=False)), style="primary"
        )
        self.bar = JobBar(session, kinds=("open", "analyse", "evaluate"))
        self.chart = SensitivityChart(session, dark=dark)
        self.table = LayerTable(session)
        self.inspector = LayerInspector(session, dark=dark)
        self.search = SearchMonitor(session, dark=dark)
        self.pruning = PruningPanel(session, dark=dark)
        self.decomposition = DecompositionPanel(session, dark=dark)
        self.train = TrainMonitor(session, dark=dark)
        self.formats = FormatsPanel(session, dark=dark)
        self.export = ExportPanel(session)
        self.graph = NetronView(session, dark=dark)
        layers = w.VBox([w.HBox([self.analyse, self.bar]), self.chart, self.table])
        self.tabs = w.Tab(
            [
                layers,
                self.inspector,
                self.search,
                self.pruning,
                self.decomposition,
                self.train,
                self.formats,
                self.export,
                self.graph,
            ],
            titles=[
                _("Layers"),
                _("Inspect"),
                _("Search"),
                _("Channels"),
                _("Decomposition"),
                _("Train"),
                _("Formats"),
                _("Export"),
                _("Graph"),
            ],
        )
        super().__init__(session, [self.summary, self.tabs])
        # The layer a user points at is the same in table, chart and graph.
        self._links = [
            traitlets.link((self.table, "selected"), (self.chart, "selected")),
            traitlets.link((self.table, "selected"), (self.graph, "layer")),
        ]
        self.table.observe(self._inspect, "selected")
        self.watch(self.refresh, "summary", "job")
        self.refresh()

    def _inspect(self, change: Any) -> None:
        if change["new"] in self.inspector.layer.options:
            self.inspector.layer.value = change["new"]

    def refresh(self) -> None:
        job = self.session.job
        self.analyse.disabled = job is not None and job.active
        self.summary.value = summary_html(self.session.summary)

    def release(self) -> None:
        if not self.disposed:
            for link in self._links:
                link.unlink()
            self.graph.dispose()
        super().release()


def summary_html(summary: Summary) -> str:
    """The live figures of a session in one line of HTML."""
    name = summary.metric_name
    predicted = f" ({_('predicted')})" if summary.metric_is_prediction else ""
    parts = [
        f"<b>{html.escape(summary.model)}</b>",
        html.escape(said(summary.data)),
        f"{html.escape(formats.metric_title(name) or _('metric'))} "
        f"{formats.metric(summary.metric_float, name)} → "
        f"<b>{formats.metric(summary.metric_current, name)}</b>{predicted} "
        f"{formats.metric_delta(summary.metric_float, summary.metric_current, name)}",
        f"{formats.size(summary.size_float)} → <b>{formats.size(summary.size_current)}</b> "
        f"{formats.ratio(summary.size_float, summary.size_current)}",
        f"{formats.bit_operations(summary.bops_float)} → "
        f"<b>{formats.bit_operations(summary.bops_current)}</b>",
        _("{n} of {m} layers quantised").format(n=summary.quantized, m=summary.eligible),
    ]
    lines = [" · ".join(part for part in parts if part)]
    lines += [html.escape(said(text)) for text in summary.notices]
    return "".join(f'<div class="wb-note">{line}</div>' for line in lines)
