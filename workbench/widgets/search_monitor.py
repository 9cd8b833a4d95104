"""Auto-calibration as it runs: metric by trial, metric by cost, the bracket, and the buttons."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

import ipywidgets as w

from workbench.charts import bracket_strip, formats, pareto_chart, search_chart
from workbench.charts.search import within_target
from workbench.charts.text import N_, _
from workbench.charts.words import trial_kinds
from workbench.widgets import figures
from workbench.widgets.chart import Chart
from workbench.widgets.job_bar import JobBar
from workbench.widgets.view import SessionView, bar, button

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.studio.session import Session

NEWEST = 10
STRATEGIES = ("Recover", "BinarySearch", "BinarySearchVerified", "Greedy", "Pareto")
COSTS = ((N_("size"), "size"), (N_("bit-operations"), "bops"), (N_("latency"), "latency"))


class SearchMonitor(SessionView):
    """Start and follow the search for as many quantised layers as the allowed loss permits.

    Layers are pinned with ``session.pin``, two trials compared with ``session.compare``.
    """

    def __init__(self, session: Session, max_loss: float = 0.005, dark: bool | None = None) -> None:
        self.session = session
        self._dark = dark
        self.max_loss = w.BoundedFloatText(
            value=max_loss, min=0.0, max=1e9, step=0.001, description=_("max loss")
        )
        self.max_loss.layout.width = "180px"
        self.strategy = w.Dropdown(options=STRATEGIES, value=STRATEGIES[0], tooltip=_("strategy"))
        self.strategy.layout.width = "170px"
        self.start = button(_("Start"), self._start, style="primary")
        self.pause = button(
            _("Pause"), self._pause_or_resume, tip=_("Hold the search, or let it go on")
        )
        self.accept = button(
            _("Accept best so far"), self._accept, tip=_("Stop, and take the best passing trial")
        )
        self.bar = JobBar(session, kinds=("search",))
        self.cost = w.ToggleButtons(
            options=[(_(title), cost) for title, cost in COSTS], value="size"
        )
        self.cost.style.button_width = "auto"
        self._figures = self._build()
        self.chart, self.pareto, self.strip = (
            figures.live(figure, dark=self.dark) for figure in self._figures
        )
        titles = (
            _("Metric by trial"), _("Layers by sensitivity and the bracket"),
            _("Metric by cost of every trial"),
        )  # fmt: skip
        chart, strip, pareto = (
            Chart(figure, title, session.project.name)
            for figure, title in zip((self.chart, self.strip, self.pareto), titles, strict=True)
        )
        self.trials = w.HTML()
        super().__init__(
            session,
            [
                bar(self.max_loss, self.strategy, self.start, self.pause, self.accept),
                self.bar, chart, strip, self.cost, pareto, self.trials,
            ],
        )  # fmt: skip
        self.max_loss.observe(lambda _: self.refresh(), "value")
        self.cost.observe(lambda _: self.refresh(), "value")
        self.watch(self.refresh, "trials", "bracket", "ranking", "pins", "exports")
        self.watch(self._running, "job", "trials")
        self._running()
        self.refresh()

    def _start(self) -> None:
        # 'Pareto' makes small what the chart shows.
        self.act(
            lambda: self.session.auto_calibrate(
                max_loss=self.max_loss.value,
                strategy=self.strategy.value,
                objective=self.cost.value,
                wait=False,
            )
        )

    def _pause_or_resume(self) -> None:
        job = self.session.job
        paused = job is not None and job.state == "paused"
        self.act(self.session.resume if paused else self.session.pause)

    def _accept(self) -> None:
        self.act(self.session.accept_best)

    def _running(self) -> None:
        job = self.session.job
        active = job is not None and job.active
        searching = active and job is not None and job.kind == "search"
        self.start.disabled = active
        self.pause.disabled = not searching
        paused = searching and job is not None and job.state == "paused"
        self.pause.description = _("Resume") if paused else _("Pause")
        own = self.session.trials["job"] == (job.id if job is not None else 0)
        unfinished = job is not None and job.kind == "search" and job.state != "finished"
        self.accept.disabled = not (
            unfinished and own.any() and self.session.best_float_layers is not None
        )

    def _build(self) -> tuple[go.Figure, go.Figure, go.Figure]:
        session = self.session
        summary = session.summary
        name = summary.metric_name or _("metric")
        return (
            search_chart(
                session.trials,
                self.max_loss.value,
                metric_name=name,
                metric_float=summary.metric_float,
                dark=self.dark,
            ),
            pareto_chart(
                session.trials,
                self.max_loss.value,
                cost=self.cost.value,
                files=session.exports.files if session.exports is not None else (),
                metric_name=name,
                metric_float=summary.metric_float,
                dark=self.dark,
            ),
            bracket_strip(
                session.ranking,
                session.bracket,
                pins=session.pins,
                best=session.best_float_layers,
                dark=self.dark,
            ),
        )

    def refresh(self) -> None:
        before, self._figures = self._figures, self._build()
        shown = (self.chart, self.pareto, self.strip)
        for widget, old, new in zip(shown, before, self._figures, strict=True):
            figures.replace(widget, old, new, dark=self.dark)
        self.trials.value = self._table()

    def _table(self) -> str:
        trials = self.session.trials
        if not len(trials):
            return f'<span class="wb-note">{html.escape(_("No trial has run yet."))}</span>'
        name = self.session.summary.metric_name
        kinds = trial_kinds()
        lines = []
        newest = trials.iloc[: -NEWEST - 1 : -1]
        passed = within_target(newest, self.max_loss.value)
        for row, within in zip(newest.itertuples(index=False), passed, strict=True):
            metric = math.nan if row.metric is None else float(row.metric)
            verdict = (
                f'<span class="wb-good">✓ {_("within the target")}</span>'
                if within
                else f'<span class="wb-bad">✗ {_("loses too much")}</span>'
            )
            kind = kinds.get(str(row.kind), str(row.kind))
            how = _("known before") if row.cached else f"{100 * row.share:.0f} %"
            lines.append(
                f"<tr><td>{row.trial}</td><td>{html.escape(kind)}</td>"
                f"<td>{row.n_float}</td><td>{formats.metric(metric, name)}</td>"
                f"<td>{formats.loss(float(row.loss), name)}</td><td>{formats.size(row.size)}</td>"
                f"<td>{formats.bit_operations(row.bops)}</td><td>{how}</td><td>{verdict}</td></tr>"
            )
        titles = (
            _("trial"), _("kind"), _("float layers"), formats.metric_title(name) or _("metric"),
            _("loss"), _("size"), _("bit-operations"), _("samples"), "",
        )  # fmt: skip
        head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
        return f'<table class="wb-table"><tr>{head}</tr>{"".join(lines)}</table>'
