"""Channel pruning in a notebook: sensitivities, plans on a slider, the smaller project."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import ipywidgets as w

from workbench.charts import channel_plan_chart, channel_sensitivity_chart
from workbench.charts.spoken import said
from workbench.charts.text import _
from workbench.studio.plan_choice import (
    FIRST_RATIO,
    FIRST_TARGET,
    chosen_plan,
    in_order,
    nearest,
    plan_notes,
    plan_title,
)
from workbench.studio.pruning_words import (
    coupled_advice,
    first_try,
    measure_advice,
    plan_advice,
    plan_figures,
    pruning_invitation,
)
from workbench.widgets import figures
from workbench.widgets.chart import Chart
from workbench.widgets.job_bar import JobBar
from workbench.widgets.shrunk_result import figures_html, shrunk_html
from workbench.widgets.view import SessionView, bar, button

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.studio.pruning_state import PrunePlan, PruningState
    from workbench.studio.session import Session


class PruningPanel(SessionView):
    """Measure once, then look plans up; take one over, or make the smaller project of it.

    The same by code: ``session.search_pruning``, ``use_plan``, ``prune``; ``session.pruning`` and
    ``session.shrunk`` have what came of it.
    """

    def __init__(self, session: Session, dark: bool | None = None) -> None:
        self.session = session
        self._dark = dark
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
        self.plan = w.SelectionSlider(options=[("1.00×", 0)], value=0, tooltip=_("Plan"))
        self.plan.layout.width = "420px"
        self.use = button(_("Use plan"), lambda: self.act(self._use))
        self.prune = button(_("Prune"), lambda: self.act(self._prune), style="primary")
        self.bar = JobBar(session, kinds=("prune_search", "prune"))
        self.note = w.HTML()
        self.numbers = w.HTML()
        self.result = w.HTML()
        self._figures = self._build()
        self.channels, self.heat = (
            figures.live(figure, dark=self.dark) for figure in self._figures
        )
        # Hidden until something is measured, so that an empty panel does not look broken.
        self.details = w.VBox(
            [
                bar(self.by, self.plan, self.use, self.prune),
                self.numbers,
                Chart(self.channels, _("Channels of each layer that stay"), session.project.name),
                Chart(self.heat, _("Sensitivity by layer and channel"), session.project.name),
            ]
        )
        super().__init__(
            session,
            [
                bar(self.measure), self.bar, self.note, self.details, self.result,
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
        return chosen_plan(self.session, self.by.value, self.plan.value)

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
            options = [(plan_title(plan), place) for place, plan in enumerate(plans)]
            if options and list(self.plan.options) != options:
                with self.mute():
                    # The old value may have no place among the new options.
                    self.plan.value = 0
                    self.plan.options = options
                    self.plan.value = nearest(plans, first)
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
        sensitivity = in_order(self.session)
        notes = plan_notes(self.session, plan)
        return (
            channel_plan_chart(
                {name: len(values) for name, values in sensitivity.items()},
                plan.removed,
                notes={name: said(reason) for name, reason in notes.items()},
                dark=self.dark,
            ),
            channel_sensitivity_chart(sensitivity, plan.removed, dark=self.dark),
        )

    def refresh(self) -> None:
        pruning, plan = self.session.pruning, self.chosen
        self.details.layout.display = "none" if pruning is None else ""
        before, self._figures = self._figures, self._build()
        shown = (self.channels, self.heat)
        for widget, old, new in zip(shown, before, self._figures, strict=True):
            figures.replace(widget, old, new, dark=self.dark)
            widget.layout.height = new.layout.height
        if pruning is None or plan is None:
            words = [pruning_invitation()]
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
        self.result.value = shrunk_html(
            self.session.shrunk, "prune", trainable=self.session.project.source.trainable
        )


def plan_html(pruning: PruningState, plan: PrunePlan) -> str:
    """What a plan leaves of each cost as a table, and what should be known about it."""
    advice = "".join(
        f'<div class="wb-bad">{html.escape(line)}</div>' for line in plan_advice(pruning, plan)
    )
    return figures_html(plan_figures(pruning, plan)) + advice
