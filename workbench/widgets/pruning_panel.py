"""Channel pruning in a notebook: sensitivities, plans on a slider, the smaller project."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from workbench.charts import channel_plan_chart, channel_sensitivity_chart, formats
from workbench.charts.spoken import said
from workbench.charts.text import _
from workbench.studio.pruning_words import (
    coupled_advice,
    first_try,
    measure_advice,
    plan_advice,
    plan_figures,
    shrunk_advice,
)
from workbench.widgets import figures
from workbench.widgets.job_bar import JobBar
from workbench.widgets.view import SessionView, button

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.studio.pruning_state import PrunePlan, PruningState, Shrunk
    from workbench.studio.session import Session

FIRST_TARGET, FIRST_RATIO = 2.0, 0.2


class PruningPanel(SessionView):
    """Measure once, then look plans up; take one over, or make the smaller project of it.

    The same by code: ``session.search_pruning``, ``use_plan``, ``prune``; ``session.pruning`` and
    ``session.shrunk`` have what came of it.
    """

    def __init__(self, session: Session, dark: bool = False) -> None:
        self.session = session
        self.dark = dark
        self.measure = button(
            _("Measure sensitivity"), lambda: self.act(lambda: session.search_pruning(wait=False))
        )
        self.by = w.ToggleButtons(
            options=[
                (_("by target"), "search"), (_("one ratio"), "uniform"),
                (_("as in the table"), "columns"),
            ],
            value="search",
        )  # fmt: skip
        self.by.style.button_width = "auto"
        self.plan = w.SelectionSlider(options=[("1.00×", 0)], value=0)
        self.plan.layout.width = "420px"
        self.use = button(_("Use plan"), lambda: self.act(self._use))
        self.prune = button(_("Prune"), lambda: self.act(self._prune), style="primary")
        self.bar = JobBar(session, kinds=("prune_search", "prune"))
        self.note = w.HTML()
        self.numbers = w.HTML()
        self.result = w.HTML()
        self._figures = self._build()
        self.channels, self.heat = map(figures.live, self._figures)
        super().__init__(
            session,
            [
                w.HBox([self.measure, self.by, self.plan, self.use, self.prune]),
                self.bar, self.note, self.numbers, self.channels, self.heat, self.result,
            ],
        )  # fmt: skip
        self.by.observe(lambda _change: self._offer(), "value")
        self.plan.observe(lambda _change: None if self._muted else self.refresh(), "value")
        self.watch(self._offer, "pruning")
        self.watch(self._layers_changed, "layers")
        self.watch(self._running, "job")
        self.watch(self._finished, "shrunk")
        self._offer()
        self._finished()

    # What the user does.

    @property
    def chosen(self) -> PrunePlan | None:
        """The plan that is looked at; None before a measurement."""
        pruning: PruningState | None = self.session.pruning
        if pruning is None:
            return None
        if self.by.value == "columns":
            return pruning.with_ratios(self.session.prune_ratios())
        plans = pruning.plans if self.by.value == "search" else pruning.uniform
        return plans[min(self.plan.value, len(plans) - 1)] if plans else pruning.original

    def _use(self) -> None:
        plan = self.chosen
        if plan is not None:
            self.session.use_plan(plan)

    def _prune(self) -> None:
        if self.by.value != "columns":
            self._use()
        self.session.prune(wait=False)

    def _offer(self) -> None:
        """Put the plans of the chosen kind on the slider."""
        pruning: PruningState | None = self.session.pruning
        by = self.by.value
        self.plan.layout.display = "none" if by == "columns" else ""
        if pruning is not None and by != "columns":
            plans = pruning.plans if by == "search" else pruning.uniform
            first = FIRST_TARGET if by == "search" else FIRST_RATIO
            options = [(_target(plan), place) for place, plan in enumerate(plans)]
            if options and list(self.plan.options) != options:
                with self.mute():
                    # The old value may have no place among the new options.
                    self.plan.value = 0
                    self.plan.options = options
                    self.plan.value = min(
                        range(len(plans)), key=lambda place: abs(plans[place].target - first)
                    )
        self.refresh()

    def _layers_changed(self) -> None:
        if self.by.value == "columns":
            self.refresh()

    # What the user sees.

    def _build(self) -> tuple[go.Figure, go.Figure]:
        pruning, plan = self.session.pruning, self.chosen
        if pruning is None or plan is None:
            empty = channel_plan_chart({}, {}, dark=self.dark)
            return empty, channel_sensitivity_chart({}, dark=self.dark)
        names = [name for name in self.session.layers["name"] if name in pruning.sensitivity]
        sensitivity = {name: pruning.sensitivity[name] for name in names}
        return (
            channel_plan_chart(
                {name: len(values) for name, values in sensitivity.items()},
                plan.removed,
                notes={name: said(reason) for name, reason in self._notes(plan).items()},
                dark=self.dark,
            ),
            channel_sensitivity_chart(sensitivity, plan.removed, dark=self.dark),
        )

    def _notes(self, plan: PrunePlan) -> dict[str, str]:
        given = self.session.prune_ratios() if plan.kind == "columns" else plan.ratios
        notes: dict[str, str] = self.session.pruning.notes(given)
        return notes

    def refresh(self) -> None:
        pruning, plan = self.session.pruning, self.chosen
        before, self._figures = self._figures, self._build()
        shown = (self.channels, self.heat)
        for widget, old, new in zip(shown, before, self._figures, strict=True):
            figures.replace(widget, old, new)
            widget.layout.height = new.layout.height
        if pruning is None or plan is None:
            words = [
                _(
                    "Measure sensitivity finds the channels that matter least; nothing is changed "
                    "by it. After pruning the network has to be trained again."
                )
            ]
            self.numbers.value = ""
        else:
            words = [first_try(plan), measure_advice(pruning), coupled_advice(pruning)]
            self.numbers.value = plan_html(pruning, plan)
        lines = "<br>".join(html.escape(line) for line in words if line)
        self.note.value = f'<div class="wb-note">{lines}</div>'
        self._running()

    def _running(self) -> None:
        job, plan = self.session.job, self.chosen
        active = job is not None and job.active
        self.measure.disabled = active
        self.use.disabled = plan is None or plan.kind == "columns"
        self.prune.disabled = active or plan is None or not plan.removed

    def _finished(self) -> None:
        self.result.value = shrunk_html(self.session.shrunk)


def _target(plan: PrunePlan) -> str:
    return f"{100 * plan.target:.0f} %" if plan.kind == "uniform" else f"{plan.target:.2f}×"


def plan_html(pruning: PruningState, plan: PrunePlan) -> str:
    """What a plan leaves of each cost as a table, and what should be known about it."""
    lines = "".join(
        f"<tr><td>{html.escape(figure.title)}</td><td>{html.escape(figure.whole)} →</td>"
        f"<td><b>{html.escape(figure.left)}</b></td><td>{html.escape(figure.ratio)}</td>"
        f"<td>{html.escape(figure.note)}</td></tr>"
        for figure in plan_figures(pruning, plan)
    )
    advice = "".join(
        f'<div class="wb-bad">{html.escape(line)}</div>' for line in plan_advice(pruning, plan)
    )
    return f'<table class="wb-table">{lines}</table>{advice}'


def shrunk_html(shrunk: Shrunk | None) -> str:
    """The smaller project of the last pruning and its figures; empty before one."""
    if shrunk is None or shrunk.kind != "prune":
        return ""
    name = shrunk.metric_name
    pairs: list[tuple[str, Any, tuple[float, float]]] = [
        (formats.metric_title(name) or _("metric"), lambda v: formats.metric(v, name),
         shrunk.metric),
        (_("multiply-accumulates"), formats.count, shrunk.macs),
        (_("parameters"), formats.count, shrunk.parameters),
        (_("latency"), _ms, shrunk.latency_ms),
    ]  # fmt: skip
    lines = "".join(
        f"<tr><td>{html.escape(title)}</td><td>{show(before)} →</td>"
        f"<td><b>{show(after)}</b></td></tr>"
        for title, show, (before, after) in pairs
    )
    advice = "<br>".join(html.escape(line) for line in shrunk_advice(shrunk))
    done = _("pruned project: {name}").format(name=Path(shrunk.folder).name)
    folder = f"<code>wb.open({html.escape(repr(shrunk.folder))})</code>"
    return (
        f'<div class="wb-note"><span class="wb-good">✓ {html.escape(done)}</span> · {folder}</div>'
        f'<table class="wb-table">{lines}</table><div class="wb-note">{advice}</div>'
    )


def _ms(value: float) -> str:
    return f"{value:.2f} ms" if math.isfinite(value) else formats.UNKNOWN
