"""Auto-calibration: what to aim for, and every trial as it comes in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import panel as pn
import panel_material_ui as pmui

from workbench.app.html import ThemedHTML, escape
from workbench.app.i18n import _
from workbench.app.job_notice import JobNotice
from workbench.app.plot import Plot
from workbench.app.search_settings import SearchSettings
from workbench.app.style import TABLE_CSS
from workbench.app.view import View
from workbench.app.window import LAYERS_TAB, SEARCH_TAB, WindowState
from workbench.charts import bracket_strip, formats, search_chart
from workbench.charts.search import within_target
from workbench.studio.session import Session


def trial_frame(trials: pd.DataFrame, metric_name: str, target_loss: float) -> pd.DataFrame:
    """The trials as text, newest first."""
    names = {
        "float": _("float model"),
        "all": _("all quantised"),
        "probe": _("what if"),
        "final": _("calibrated"),
    }
    newest = trials.iloc[::-1]
    text = pd.Series(dtype=object)
    if not len(newest):  # Tabulator chooses how to show a column by its type, once
        numbers = {"trial": np.int64, "n_float": np.int64}
        columns = ["trial", "kind", "metric", "loss", "target", "n_float", "layers", "seconds"]
        return pd.DataFrame({c: text.astype(numbers.get(c, object)) for c in columns})
    return pd.DataFrame(
        {
            "trial": newest["trial"].to_numpy(),
            "kind": [names.get(str(kind), str(kind)) for kind in newest["kind"]],
            "metric": [formats.metric(value, metric_name) for value in newest["metric"].tolist()],
            "loss": [formats.loss(value, metric_name) for value in newest["loss"].tolist()],
            "target": ["✓" if ok else "✕" for ok in within_target(newest, target_loss)],
            "n_float": newest["n_float"].to_numpy(),
            "layers": [
                _("all") if kind == "float" else ", ".join(layers)
                for kind, layers in zip(newest["kind"], newest["float_layers"], strict=True)
            ],
            "seconds": [f"{seconds:.1f} s" for seconds in newest["seconds"].tolist()],
        }
    )


class SearchTab(View):
    """Settings and start or stop; metric by trial; the bracket; all trials ever run."""

    def __init__(self, session: Session, window: WindowState, settings: SearchSettings) -> None:
        super().__init__(session, window, SEARCH_TAB)
        self.settings = settings
        self.state = JobNotice(session, window, ("open", "search"))
        self.parts = [self.state]
        self.start = pmui.Button(label=_("Start"), icon="play_arrow", size="small", margin=0)
        self.press(
            self.start,
            lambda: self.act(lambda: session.auto_calibrate(**settings.arguments(), wait=False)),
        )
        self.stop = pmui.Button(
            label=_("Stop"), icon="stop", size="small", variant="outlined", margin=0
        )
        self.press(self.stop, lambda: self.act(session.cancel))
        self.text = ThemedHTML(margin=(4, 0))
        self.metric = Plot(self._metric_figure(), height=270, label=_("Metric by trial"))
        self.bracket = Plot(
            self._bracket_figure(), height=96, label=_("Layers by sensitivity and the bracket")
        )  # fmt: skip
        self.table = pn.widgets.Tabulator(
            self._trial_frame(),
            show_index=False,
            pagination=None,
            disabled=True,
            selectable=1,
            titles={
                "trial": _("trial"), "kind": _("kind"), "metric": _("metric"), "loss": _("loss"),
                "target": _("target"), "n_float": _("float layers"), "layers": _("which"),
                "seconds": _("time"),
            },
            widths={"layers": 420, "kind": 110, "trial": 60},
            layout="fit_data_stretch",
            theme="materialize",
            configuration={"columnDefaults": {"headerSort": False}, "rowHeight": 28},
            sizing_mode="stretch_width",
            height=210,
            margin=0,
            stylesheets=[TABLE_CSS],
        )  # fmt: skip
        self.use = pmui.Button(
            label=_("Open in Layers"), size="small", variant="outlined", margin=0, disabled=True
        )
        self.press(self.use, lambda: self.use_trial())
        self.watch(self.table, self._chosen, "selection")
        self.watch(session, self.update_trials, "trials", "summary")
        self.watch(session, self.update_bracket, "bracket", "ranking", "job")
        self.watch(session, self.update, "job", "layers", "trials")
        self.watch(settings, self.update_trials, "max_loss_percent")
        self.watch(window, self.update_theme, "dark")
        self.update()

    @property
    def target_loss(self) -> float:
        return float(self.settings.max_loss_percent) / 100

    def _trial_frame(self) -> pd.DataFrame:
        session = self.session
        return trial_frame(session.trials, session.summary.metric_name, self.target_loss)

    def _metric_figure(self) -> Any:
        summary = self.session.summary
        return search_chart(
            self.session.trials,
            self.target_loss,
            metric_name=summary.metric_name or _("metric"),
            metric_float=summary.metric_float,
            dark=self.window.dark,
            height=270,
        )

    def _bracket_figure(self) -> Any:
        return bracket_strip(
            self.session.ranking, self.session.bracket, dark=self.window.dark, height=96
        )

    def update_metric(self) -> None:
        self.metric.draw(self._metric_figure())

    def update_bracket(self) -> None:
        self.bracket.draw(self._bracket_figure())

    def update_trials(self) -> None:
        frame = self._trial_frame()
        if not frame.equals(self.table.value):
            self.table.value = frame
            self.table.selection = []
        self.update_metric()

    def update(self) -> None:
        job = self.session.job
        active = job is not None and job.active
        self.start.disabled = active or not len(self.session.layers)
        self.stop.disabled = not (active and job is not None and job.kind == "search")
        self.text.fill(self._sentence())

    def _sentence(self) -> str:
        job = self.session.job
        finals = self.session.trials[self.session.trials["kind"] == "final"]
        if job is not None and job.active and job.kind == "search":
            text = _("Searching: the fewest layers that must stay float.")
            if self.session.bracket is not None:
                low, high = self.session.bracket
                text += f" {_('Between')} {low} {_('and')} {high}."
            return f'<div role="status">{escape(text)}</div>'
        if len(finals) and job is not None and job.kind == "search" and job.state == "finished":
            last = finals.iloc[-1]
            name = self.session.summary.metric_name
            title = formats.metric_title(name)
            layers = ", ".join(last["float_layers"]) or _("none")
            mark = "✓" if last["satisfied"] else "✕"
            tone = "wb-good" if last["satisfied"] else "wb-bad"
            return (
                f'<div role="status"><b class="{tone}">{mark} {escape(_("Done"))}</b>: '
                f"{escape(title)} {formats.metric(last['metric'], name)} "
                f"{escape(_('with these layers left float'))}: {escape(layers)}. "
                f"{escape(_('The configuration is in Layers; Undo takes it back.'))}</div>"
            )
        text = _("Finds the fewest layers that must stay float.")
        return f'<div class="wb-muted">{escape(text)}</div>'

    def _chosen(self) -> None:
        self.use.disabled = not self.table.selection

    def use_trial(self) -> None:
        if not self.table.selection:
            return
        row = len(self.session.trials) - 1 - int(self.table.selection[0])
        layers = self.session.trials["float_layers"].iloc[row]
        if self.act(lambda: self.session.set_float_layers(layers)):
            self.window.tab = LAYERS_TAB

    def update_theme(self) -> None:
        self.update_metric()
        self.update_bracket()

    def __panel__(self) -> Any:
        return pn.Column(
            self.state,
            pn.Row(
                self.settings.panel(),
                self.start,
                self.stop,
                sizing_mode="stretch_width",
                margin=(6, 0),
                styles={"align-items": "center", "gap": "8px"},
            ),
            self.text,
            self.metric,
            self.bracket,
            pn.Row(
                pn.pane.HTML(
                    f'<b style="font-size:13px">{escape(_("Trials of this project"))}</b>',
                    margin=0,
                    align="center",
                ),
                self.use,
                margin=(6, 0),
                styles={"align-items": "center", "gap": "16px"},
            ),
            self.table,
            sizing_mode="stretch_width",
            margin=(0, 14, 10, 14),
        )
