"""Auto-calibration as it runs: metric by trial, the bracket, the trials, Cancel."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

import ipywidgets as w

from workbench.charts import bracket_strip, formats, search_chart
from workbench.widgets import figures
from workbench.widgets.job_bar import JobBar
from workbench.widgets.view import SessionView, button

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.studio.session import Session

NEWEST = 10


class SearchMonitor(SessionView):
    """Start and follow the search for as many quantised layers as the allowed loss permits."""

    def __init__(self, session: Session, max_loss: float = 0.005, dark: bool = False) -> None:
        self.session = session
        self.dark = dark
        self.max_loss = w.BoundedFloatText(
            value=max_loss, min=0.0, max=1e9, step=0.001, description="max loss"
        )
        self.max_loss.layout.width = "180px"
        self.start = button("Auto-calibrate", self._start, style="primary")
        self.bar = JobBar(session, kinds=("search",))
        self._chart, self._strip = self._build()
        self.chart = figures.live(self._chart)
        self.strip = figures.live(self._strip)
        self.trials = w.HTML()
        super().__init__(
            session,
            [w.HBox([self.max_loss, self.start]), self.bar, self.chart, self.strip, self.trials],
        )
        self.max_loss.observe(lambda _: self.refresh(), "value")
        self.watch(self.refresh, "trials", "bracket", "ranking")
        self.watch(self._running, "job")
        self._running()
        self.refresh()

    def _start(self) -> None:
        self.act(lambda: self.session.auto_calibrate(max_loss=self.max_loss.value, wait=False))

    def _running(self) -> None:
        job = self.session.job
        self.start.disabled = job is not None and job.state in ("queued", "running")

    def _build(self) -> tuple[go.Figure, go.Figure]:
        session = self.session
        return (
            search_chart(
                session.trials,
                self.max_loss.value,
                metric_name=session.summary.metric_name or "metric",
                metric_float=session.summary.metric_float,
                dark=self.dark,
            ),
            bracket_strip(session.ranking, session.bracket, dark=self.dark),
        )

    def refresh(self) -> None:
        chart, strip = self._build()
        figures.replace(self.chart, self._chart, chart)
        figures.replace(self.strip, self._strip, strip)
        self._chart, self._strip = chart, strip
        self.trials.value = self._table()

    def _table(self) -> str:
        trials = self.session.trials
        if not len(trials):
            return '<span class="wb-note">No trial has run yet.</span>'
        name = self.session.summary.metric_name
        lines = []
        for row in trials.iloc[: -NEWEST - 1 : -1].itertuples(index=False):
            metric = math.nan if row.metric is None else float(row.metric)
            verdict = (
                '<span class="wb-good">✓ within the target</span>'
                if row.satisfied
                else '<span class="wb-bad">✗ too much loss</span>'
            )
            lines.append(
                f"<tr><td>{row.trial}</td><td>{html.escape(str(row.kind))}</td>"
                f"<td>{row.n_float}</td><td>{formats.metric(metric, name)}</td>"
                f"<td>{formats.exact(row.loss)}</td><td>{verdict}</td></tr>"
            )
        return (
            '<table class="wb-table"><tr><th>trial</th><th>kind</th><th>float layers</th>'
            f"<th>{html.escape(name or 'metric')}</th><th>loss</th><th></th></tr>"
            + "".join(lines)
            + "</table>"
        )
