"""Training: what to train with, loss and metric as they come in, clip bounds, checkpoints."""

from __future__ import annotations

import math
import time
from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app.fold import Fold
from workbench.app.html import ThemedHTML, escape
from workbench.app.i18n import _, error_text, said
from workbench.app.job_notice import JobNotice
from workbench.app.mask_view import MaskView
from workbench.app.plot import Plot
from workbench.app.shrunk_result import made_from
from workbench.app.style import BESIDE, aligned
from workbench.app.train_settings import TrainSettings
from workbench.app.train_words import invitation, kept_sentence, result
from workbench.app.view import View
from workbench.app.window import EXPORT_TAB, TRAIN_TAB, WindowState
from workbench.charts import clip_chart, formats, loss_chart, metric_chart, rate_chart
from workbench.charts.words import job_sentence, method_title
from workbench.studio.session import Session
from workbench.studio.training_state import PLAIN, Curves, TrainingState

HEIGHT = 200
CLIP_HEIGHT = 190
MOST_CLIPS = 4


class TrainTab(View):
    """Settings and buttons; loss and metric; learning rate and clip bounds; checkpoints."""

    def __init__(self, session: Session, window: WindowState) -> None:
        super().__init__(session, window, TRAIN_TAB)
        first = {"method": "finetune"} if session.origin and not session.weights else {}
        self.settings = window.settings(TrainSettings, **first)
        self.origin = ThemedHTML(margin=(8, 0, 0, 0), visible=False)
        self.state = JobNotice(session, window, ("open", "train", "weights"))
        self.masks = MaskView(session, window)
        self.parts = [self.state, self.masks]
        self.start = self._button(
            _("Train"),
            "play_arrow",
            lambda: session.train(**self.settings.arguments(), wait=False),
            variant="contained",
        )
        self.stop = self._button(_("Stop"), "stop", session.cancel)
        self.resume = self._button(
            _("Resume"), "play_arrow", lambda: session.resume_training(wait=False)
        )
        self.export = self._button(_("Export trained model"), "download", self._export)
        self.use = self._button(
            _("Use these weights"), "check", lambda: session.use_weights(wait=False)
        )
        self.back = self._button(
            _("Take the weights back"), "undo", lambda: session.take_back_weights(wait=False)
        )
        self.compression = self.settings.compression()
        self.fold = Fold(window, "train", self.settings.more)
        self.text = ThemedHTML(margin=(4, 0), sizing_mode="stretch_width")
        self.loss = Plot(self._loss_figure(), height=HEIGHT, label=_("Loss by step"))
        self.metric = Plot(self._metric_figure(), height=HEIGHT, label=_("Metric by step"))
        self.rate = Plot(self._rate_figure(), height=CLIP_HEIGHT, label=_("Learning rate by step"))
        self.layers = pmui.MultiChoice(
            label=_("clip bounds of (at most 4 layers)"), options=[], value=[],
            max_items=MOST_CLIPS, sizing_mode="stretch_width", margin=(4, 0, 0, 64),
        )  # fmt: skip
        self.clips = Plot(self._clip_figure(), height=CLIP_HEIGHT, label=_("Clip bounds by step"))
        self.checkpoints = ThemedHTML(margin=(8, 0))
        self.watch(session, self.update_curves, "curves")
        self.watch(session, self.update_metric, "summary", "training")
        self.watch(session, self.update, "job", "layers", "training", "weights", "origin")
        self.watch(self.settings, self.update, "method", "sparsity", "quantise")
        self.watch(session, self.update_checkpoints, "training", "curves", "summary")
        self.watch(self.layers, self.update_clips, "value")
        self.watch(window, self.update_theme, "dark")
        self._offer_layers()
        self.update()
        self.update_checkpoints()

    def _button(self, label: str, icon: str, action: Any, variant: str = "outlined") -> Any:
        button = pmui.Button(label=label, icon=icon, size="small", variant=variant, margin=0)
        self.press(button, lambda: self.act(lambda: action()))
        return button

    def _export(self) -> None:
        training = self.session.training
        if training is not None:
            self.session.export(method=training.method, wait=False)
            self.window.tab = EXPORT_TAB

    # -- charts -------------------------------------------------------------------------------

    @property
    def curves(self) -> Curves:
        found: Curves = self.session.curves
        return found

    @property
    def total(self) -> int:
        """Steps of the whole training, 0 while not known."""
        steps = self.curves.steps
        return int(steps["steps"].iloc[-1]) if len(steps) else 0

    def _loss_figure(self) -> Any:
        return loss_chart(self.curves.steps, total=self.total, dark=self.window.dark, height=HEIGHT)

    def _metric_figure(self) -> Any:
        summary = self.session.summary
        training = self.session.training
        before = math.nan if training is None else training.metric_before
        if not math.isfinite(before) and not summary.metric_is_prediction:
            before = summary.metric_current
        return metric_chart(
            self.curves.evaluations,
            metric_name=summary.metric_name or _("metric"),
            metric_float=summary.metric_float,
            metric_before=before,
            total=self.total,
            dark=self.window.dark,
            height=HEIGHT,
        )

    def _rate_figure(self) -> Any:
        return rate_chart(
            self.curves.steps, total=self.total, dark=self.window.dark, height=CLIP_HEIGHT
        )

    def _clip_figure(self) -> Any:
        chosen = self.layers.value or []
        return clip_chart(
            self.curves.clips, chosen, total=self.total, dark=self.window.dark, height=CLIP_HEIGHT
        )

    def update_curves(self) -> None:
        self._offer_layers()
        self.loss.draw(self._loss_figure())
        self.update_metric()
        self.rate.draw(self._rate_figure())
        self.update_clips()

    def update_metric(self) -> None:
        self.metric.draw(self._metric_figure())

    def update_clips(self) -> None:
        self.clips.draw(self._clip_figure())

    def _offer_layers(self) -> None:
        """Once the layers of a training are known, follow those whose bounds differ most."""
        clips = self.curves.clips
        names = list(dict.fromkeys(clips["layer"]))
        if names == list(self.layers.options or []):
            return
        kept = [name for name in self.layers.value or [] if name in names]
        self.layers.param.update(options=names, value=kept or names[:1] + names[-1:])

    def update_theme(self) -> None:
        self.update_curves()

    # -- words --------------------------------------------------------------------------------

    def update(self) -> None:
        job, training = self.session.job, self.session.training
        active = job is not None and job.active
        running = active and job is not None and job.kind == "train"
        finished = training is not None and training.state == "finished"
        trainable = self.session.project.source.trainable
        self.start.disabled = active or not len(self.session.layers) or not trainable
        self.stop.disabled = not running
        self.resume.disabled = active or training is None or not training.can_resume
        self.export.disabled = active or not finished
        self.use.visible = finished and training is not None and training.method in PLAIN
        self.use.disabled = active
        self.back.visible = bool(self.session.weights)
        self.back.disabled = active
        shown = self.settings.quantises() or bool(len(self.curves.clips))
        self.layers.visible = self.clips.visible = shown
        trained = finished or bool(self.session.weights)
        origin = made_from(self.session.origin, metric=trainable and not trained)
        self.origin.fill(origin)
        self.origin.visible = bool(origin)
        self.text.fill(self._sentence(running))

    def _sentence(self, running: bool) -> str:
        training = self.session.training
        if running:
            job = self.session.job
            words = job_sentence("train", job.message if job is not None else "")
            return f'<div role="status">{escape(words)}{escape(self._with(training))}</div>'
        if training is not None and training.state == "finished":
            done = escape(result(training, self.session.summary, self.session.origin))
            title = escape(method_title(training.method))
            return (
                f'<div role="status"><b class="wb-good">✓ {escape(_("Done"))}</b>: '
                f"{title} · {done}</div>"
            )
        if training is not None and training.can_resume:
            words = _("The training was stopped. Resume goes on after step {step}.").format(
                step=training.checkpoints[0].step
            )
            return f'<div role="status">{escape(words)}</div>'
        return f'<div class="wb-muted">{escape(self._invitation())}</div>'

    def _with(self, training: TrainingState | None) -> str:
        if training is None or not training.data:
            return ""
        return f" · {said(training.data)} · {said(training.loss)}"

    def _invitation(self) -> str:
        refusal = self.session.project.source.no_training
        if refusal is not None:
            return error_text(refusal, where=False)
        layers = self.session.layers
        counts = {
            name: int(layers[column].sum()) if len(layers) else 0
            for name, column in (("ticked", "retrain_enable"), ("pruned", "prune_enable"))
        }
        words = invitation(self.settings.method, **counts)
        kept = kept_sentence(self.session.weights, self.session.summary.metric_name)
        return f"{kept} {words}" if kept else words

    def update_checkpoints(self) -> None:
        training = self.session.training
        if training is None or not training.checkpoints:
            self.checkpoints.fill("")
            return
        metrics = dict(
            zip(self.curves.evaluations["step"], self.curves.evaluations["metric"], strict=True)
        )
        name = self.session.summary.metric_name
        heads = (
            (_("checkpoint"), ""), (_("step"), "wb-number"),
            (formats.metric_title(name) or _("metric"), "wb-number"),
            (_("size"), "wb-number"), (_("written"), ""),
        )  # fmt: skip
        head = "".join(f'<th class="{css}">{escape(title)}</th>' for title, css in heads)
        rows = "".join(
            f"<tr><td>{escape(row.name)}</td><td class='wb-number'>{row.step}</td>"
            f"<td class='wb-number'>{formats.metric(metrics.get(row.step), name)}</td>"
            f"<td class='wb-number'>{formats.size(row.bytes)}</td>"
            f"<td>{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(row.time))}</td></tr>"
            for row in training.checkpoints
        )
        self.checkpoints.fill(
            f'<h2 class="wb">{escape(_("Checkpoints on disk"))}</h2>'
            f'<table class="wb"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        )

    def __panel__(self) -> Any:
        row: dict[str, Any] = {"sizing_mode": "stretch_width", "margin": 0}
        return pn.Column(
            self.state,
            self.origin,
            aligned(
                self.settings.panel(), self.start, self.stop, self.resume, self.export,
                self.fold.button,
                sizing_mode="stretch_width", margin=(10, 0, 6, 0),
            ),
            self.compression,
            self.fold.body,
            aligned(self.text, self.use, self.back, **row),
            pn.Row(self.loss, self.metric, styles=BESIDE, **row),
            pn.Row(
                pn.Column(self.rate, self.checkpoints, **row),
                pn.Column(self.layers, self.clips, **row),
                styles=BESIDE,
                **row,
            ),
            self.masks,
            sizing_mode="stretch_width",
            margin=(0, 14, 10, 14),
        )  # fmt: skip
