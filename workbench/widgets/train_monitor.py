"""A training as it runs: loss, metric, learning rate, clip bounds, checkpoints, and the buttons."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

import ipywidgets as w

from workbench.charts import (
    clip_chart,
    formats,
    loss_chart,
    metric_chart,
    rate_chart,
    sparse_weight_chart,
)
from workbench.charts.spoken import said
from workbench.charts.text import N_, _
from workbench.charts.words import method_title
from workbench.studio.training_state import METHODS, PLAIN
from workbench.widgets import figures
from workbench.widgets.chart import Chart
from workbench.widgets.job_bar import JobBar
from workbench.widgets.view import SessionView, bar, button

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.studio.session import Session

MOST_CLIPS = 4
NOTHING = ((0.0,),)
MASK_HEADS = (N_("layer"), N_("stays"), N_("why not"))


class TrainMonitor(SessionView):
    """Start, follow, stop and resume a training; more settings: ``session.train(…)``.

    The clip bounds are those of the layers in ``layers`` (at most four are drawn).
    """

    def __init__(self, session: Session, epochs: int = 2, dark: bool | None = None) -> None:
        self.session = session
        self._dark = dark
        self.method = w.Dropdown(
            options=[(method_title(method), method) for method in METHODS],
            value=METHODS[0],
            tooltip=_("method"),
        )
        self.method.layout.width = "130px"
        self.epochs = w.BoundedIntText(value=epochs, min=1, max=100_000, description=_("epochs"))
        self.epochs.layout.width = "160px"
        self.start = button(_("Train"), self._start, style="primary")
        self.stop = button(_("Stop"), self._stop, tip=_("Stop, with a checkpoint where it is"))
        self.resume = button(_("Resume"), self._resume, tip=_("Go on from the last checkpoint"))
        self.use = button(
            _("Use these weights"),
            self._use,
            tip=_("Make them the project's own; everything is measured anew."),
        )
        self.back = button(_("Take the weights back"), self._back)
        self.bar = JobBar(session, kinds=("train", "weights"))
        self.layers = w.SelectMultiple(description=_("bounds of"), rows=4)
        self.layers.layout.width = "420px"
        self.masked = w.Dropdown(description=_("weight of"), options=())
        self.masked.layout.width = "420px"
        self._figures = self._build()
        self.loss, self.metric, self.rate, self.clips, self.weight = (
            figures.live(figure, dark=self.dark) for figure in self._figures
        )
        titles = (
            _("Loss by step"), _("Metric by step"), _("Learning rate by step"),
            _("Clip bounds by step"), _("Weights before and after"),
        )  # fmt: skip
        loss, metric, rate, clips, weight = (
            Chart(figure, title, session.project.name)
            for figure, title in zip(
                (self.loss, self.metric, self.rate, self.clips, self.weight), titles, strict=True
            )
        )
        self.bounds = w.VBox([self.layers, clips])
        self.masks = w.VBox([self.masked, weight])
        self.result = w.HTML()
        super().__init__(
            session,
            [
                bar(
                    self.method, self.epochs, self.start, self.stop, self.resume, self.use,
                    self.back,
                ),
                self.bar, self.result, loss, metric, self.bounds, rate, self.masks,
            ],
        )  # fmt: skip
        self.layers.observe(lambda _: None if self._muted else self.refresh(), "value")
        self.masked.observe(lambda _: None if self._muted else self.refresh(), "value")
        self.watch(self.refresh, "curves", "training", "summary", "weights")
        self.watch(self._running, "job", "training", "weights")
        self._running()
        self.refresh()

    def _start(self) -> None:
        self.act(
            lambda: self.session.train(self.method.value, epochs=self.epochs.value, wait=False)
        )

    def _stop(self) -> None:
        self.act(self.session.cancel)

    def _resume(self) -> None:
        self.act(lambda: self.session.resume_training(wait=False))

    def _use(self) -> None:
        self.act(lambda: self.session.use_weights(wait=False))

    def _back(self) -> None:
        self.act(lambda: self.session.take_back_weights(wait=False))

    def _running(self) -> None:
        job, training = self.session.job, self.session.training
        active = job is not None and job.active
        self.start.disabled = active
        self.stop.disabled = not (active and job is not None and job.kind == "train")
        self.resume.disabled = active or training is None or not training.can_resume
        plain = training is not None and training.state == "finished" and training.method in PLAIN
        self.use.disabled = active or not plain
        self.back.disabled = active or not self.session.weights

    def _build(self) -> tuple[go.Figure, ...]:
        curves, summary = self.session.curves, self.session.summary
        total = int(curves.steps["steps"].iloc[-1]) if len(curves.steps) else 0
        dark = self.dark
        training = self.session.training
        before = math.nan if training is None else training.metric_before
        if not math.isfinite(before) and not summary.metric_is_prediction:
            before = summary.metric_current
        chosen = self.masked.value
        pair = self.session.masked_weights(chosen) if chosen else None
        return (
            loss_chart(curves.steps, total=total, dark=dark),
            metric_chart(
                curves.evaluations,
                metric_name=summary.metric_name or _("metric"),
                metric_float=summary.metric_float,
                metric_before=before,
                total=total,
                dark=dark,
            ),
            rate_chart(curves.steps, total=total, dark=dark),
            clip_chart(curves.clips, self.layers.value, total=total, dark=dark),
            sparse_weight_chart(*(pair or (NOTHING, NOTHING)), name=chosen or "", dark=dark),
        )

    def refresh(self) -> None:
        names = tuple(dict.fromkeys(self.session.curves.clips["layer"]))
        if names != self.layers.options:
            with self.mute():
                kept = tuple(name for name in self.layers.value if name in names)
                self.layers.options = names
                self.layers.value = kept or (names[:1] + names[-1:] if names else ())
        training = self.session.training
        masks = training.masks if training is not None else ()
        masked = tuple(row.layer for row in masks if row.density < 1.0)
        if masked != self.masked.options:
            with self.mute():
                chosen = self.masked.value
                self.masked.options = masked
                self.masked.value = chosen if chosen in masked else next(iter(masked), None)
        self.masks.layout.display = "" if masked else "none"
        # Not every method trains bounds: what never comes is not announced.
        done = training is not None and training.state == "finished"
        self.bounds.layout.display = "none" if done and not names else ""
        before, self._figures = self._figures, self._build()
        shown = (self.loss, self.metric, self.rate, self.clips, self.weight)
        for widget, old, new in zip(shown, before, self._figures, strict=True):
            figures.replace(widget, old, new, dark=self.dark)
        self.result.value = self._text()

    def _text(self) -> str:
        training = self.session.training
        if training is None:
            return f'<span class="wb-note">{html.escape(_("No training has run yet."))}</span>'
        name = self.session.summary.metric_name
        parts = [html.escape(said(part)) for part in (training.data, training.loss) if part]
        if training.state == "finished":
            title = html.escape(formats.metric_title(name) or _("metric"))
            figure = f"{title} <b>{formats.metric(training.metric, name)}</b>"
            parts.insert(0, f'<span class="wb-good">✓ {_("trained")}</span>: {figure}')
        elif training.can_resume:
            step = training.checkpoints[0].step
            parts.insert(0, _("stopped; Resume goes on after step {step}").format(step=step))
        rows = "".join(
            f"<tr><td>{html.escape(row.name)}</td><td>{_('step')} {row.step}</td>"
            f"<td>{formats.size(row.bytes)}</td></tr>"
            for row in training.checkpoints
        )
        masks = "".join(
            f"<tr><td>{html.escape(row.layer)}</td><td>{formats.percent(row.density)}</td>"
            f"<td>{html.escape(said(row.reason))}</td></tr>"
            for row in training.masks
        )
        if masks:
            heads = "".join(f"<th>{_(head)}</th>" for head in MASK_HEADS)
            masks = f'<table class="wb-table"><tr>{heads}</tr>{masks}</table>'
        return (
            f'<div class="wb-note">{" · ".join(parts)}</div>'
            f'<table class="wb-table">{rows}</table>{masks}'
        )
