"""Auto-calibration: what to aim for, every trial as it comes in, and what each of them costs."""

from __future__ import annotations

from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app.html import ThemedHTML, escape
from workbench.app.i18n import _
from workbench.app.job_notice import JobNotice
from workbench.app.pin_control import PinControl
from workbench.app.plot import Plot
from workbench.app.rows import any_eligible
from workbench.app.search_settings import SearchSettings
from workbench.app.style import BESIDE, aligned
from workbench.app.trial_table import TrialTable
from workbench.app.view import View
from workbench.app.window import SEARCH_TAB, WindowState
from workbench.charts import bracket_strip, formats, pareto_chart, search_chart
from workbench.studio.session import Session

HEIGHT = 250
STRIP_HEIGHT = 92


class SearchTab(View):
    """Settings and buttons; metric by trial and by cost; the bracket; all trials ever run."""

    def __init__(self, session: Session, window: WindowState, settings: SearchSettings) -> None:
        super().__init__(session, window, SEARCH_TAB)
        self.settings = settings
        self.state = JobNotice(session, window, ("open", "search"))
        self.pins = PinControl(session, window)
        self.trials = TrialTable(session, window, settings)
        self.parts = [self.state, self.pins, self.trials]
        self.start = self._button(
            _("Start"),
            "play_arrow",
            lambda: session.auto_calibrate(**settings.arguments(), wait=False),
            variant="contained",
        )
        self.pause = self._button(_("Pause"), "pause", self._pause_or_resume)
        self.stop = self._button(_("Stop"), "stop", session.cancel)
        self.accept = self._button(_("Accept best so far"), "check", session.accept_best)
        self.text = ThemedHTML(margin=(4, 0))
        self.metric = Plot(self._metric_figure(), height=HEIGHT, label=_("Metric by trial"))
        self.cost = pmui.RadioButtonGroup(
            options={_("size"): "size", _("bit-operations"): "bops", _("latency"): "latency"},
            width=300, value="size", size="small", margin=(0, 0, 0, 64),
        )  # fmt: skip
        window.keep("search.cost", self.cost)
        self.pareto = Plot(
            self._pareto_figure(),
            height=HEIGHT - 30,
            label=_("Metric by cost of every trial"),
            on_click=self._pointed_at,
        )
        self.bracket = Plot(
            self._bracket_figure(),
            height=STRIP_HEIGHT,
            label=_("Layers by sensitivity and the bracket"),
            on_click=self.pins.turn,
        )
        self.watch(session, self.update_metric, "trials", "summary")
        self.watch(session, self.update_pareto, "trials", "summary", "exports")
        self.watch(session, self.update_bracket, "bracket", "ranking", "trials", "pins")
        self.watch(session, self.update, "job", "layers", "trials", "bracket")
        self.watch(settings, self.update_theme, "max_loss_percent")
        self.watch(self.cost, self.update_pareto, "value")
        self.watch(window, self.update_theme, "dark")
        self.update()

    def _button(self, label: str, icon: str, action: Any, variant: str = "outlined") -> Any:
        button = pmui.Button(label=label, icon=icon, size="small", variant=variant, margin=0)
        self.press(button, lambda: self.act(lambda: action()))
        return button

    @property
    def target_loss(self) -> float:
        return float(self.settings.max_loss_percent) / 100

    def _metric_figure(self) -> Any:
        summary = self.session.summary
        return search_chart(
            self.session.trials,
            self.target_loss,
            metric_name=summary.metric_name or _("metric"),
            metric_float=summary.metric_float,
            dark=self.window.dark,
            height=HEIGHT,
        )

    def _pareto_figure(self) -> Any:
        session = self.session
        return pareto_chart(
            session.trials,
            self.target_loss,
            cost=self.cost.value,
            files=session.exports.files if session.exports is not None else (),
            metric_name=session.summary.metric_name or _("metric"),
            metric_float=session.summary.metric_float,
            dark=self.window.dark,
            height=HEIGHT - 30,
        )

    def _bracket_figure(self) -> Any:
        session = self.session
        return bracket_strip(
            session.ranking,
            session.bracket,
            pins=session.pins,
            best=session.best_float_layers,
            dark=self.window.dark,
            height=STRIP_HEIGHT,
        )

    def update_metric(self) -> None:
        self.metric.draw(self._metric_figure())

    def update_pareto(self) -> None:
        self.pareto.draw(self._pareto_figure())

    def update_bracket(self) -> None:
        self.bracket.draw(self._bracket_figure())

    def update(self) -> None:
        job = self.session.job
        active = job is not None and job.active
        searching = active and job is not None and job.kind == "search"
        paused = searching and job is not None and job.state == "paused"
        self.start.disabled = active or not any_eligible(self.session.layers)
        self.pause.disabled = self.stop.disabled = not searching
        # Of a search that was stopped, too; what a finished one found is the configuration.
        unfinished = job is not None and job.kind == "search" and job.state != "finished"
        self.accept.disabled = not unfinished or self._best_of(job.id if job else 0) is None
        label, icon = (_("Resume"), "play_arrow") if paused else (_("Pause"), "pause")
        if self.pause.label != label:
            self.pause.param.update(label=label, icon=icon)
        self.text.fill(self._sentence())

    def _best_of(self, job: int) -> tuple[str, ...] | None:
        """Float layers of the best trial of the search that runs, None while none has passed."""
        if not (self.session.trials["job"] == job).any():
            return None
        return self.session.best_float_layers

    def _sentence(self) -> str:
        session, job = self.session, self.session.job
        if job is not None and job.active and job.kind == "search":
            if job.state == "paused":
                text = _("Paused. Resume goes on where it was; Stop keeps every trial.")
                return f'<div role="status"><b>❚❚ {escape(text)}</b></div>'
            text = _("Searching: the fewest layers that must stay float.")
            if session.bracket is not None:
                low, high = session.bracket
                text += " " + _("Between {low} and {high}.").format(low=low, high=high)
            return f'<div role="status">{escape(text)}</div>'
        finals = session.trials[session.trials["kind"] == "final"]
        if len(finals) and job is not None and job.kind == "search" and job.state == "finished":
            return self._result(finals.iloc[-1])
        text = _("Finds the fewest layers that must stay float.")
        return f'<div class="wb-muted">{escape(text)}</div>'

    def _result(self, last: Any) -> str:
        name = self.session.summary.metric_name
        title = formats.metric_title(name)
        layers = ", ".join(last["float_layers"]) or _("none")
        mark = "✓" if last["satisfied"] else "✕"
        tone = "wb-good" if last["satisfied"] else "wb-bad"
        words = _(
            "{metric} with these layers left float: {layers}. The configuration is in Layers; "
            "Undo takes it back."
        ).format(metric=f"{title} {formats.metric(last['metric'], name)}", layers=layers)
        return (
            f'<div role="status"><b class="{tone}">{mark} {escape(_("Done"))}</b>: '
            f"{escape(words)}</div>"
        )

    def _pause_or_resume(self) -> None:
        job = self.session.job
        if job is not None and job.state == "paused":
            self.session.resume()
        else:
            self.session.pause()

    def _pointed_at(self, trial: str) -> None:
        if trial.lstrip("-").isdigit():
            self.trials.choose((int(trial),))

    def update_theme(self) -> None:
        self.update_metric()
        self.update_pareto()
        self.update_bracket()

    def __panel__(self) -> Any:
        return pn.Column(
            self.state,
            aligned(
                self.settings.panel(), self.start, self.pause, self.stop, self.accept,
                sizing_mode="stretch_width", margin=(10, 0, 6, 0),
            ),
            self.text,
            pn.Row(
                self.metric,
                pn.Column(self.cost, self.pareto, sizing_mode="stretch_width", margin=0),
                sizing_mode="stretch_width",
                margin=0,
                styles=BESIDE,
            ),
            self.bracket,
            self.pins,
            self.trials,
            sizing_mode="stretch_width",
            margin=(0, 14, 10, 14),
        )  # fmt: skip
