"""Beside the prediction of an edit: what becomes of the evaluation that replaces it."""

from __future__ import annotations

import math
from typing import Any

import panel_material_ui as pmui

from workbench.app.html import ThemedHTML, escape
from workbench.app.i18n import _, said
from workbench.app.style import aligned
from workbench.app.view import View
from workbench.app.window import LAYERS_TAB, WindowState
from workbench.charts import formats
from workbench.studio.measuring import Measuring
from workbench.studio.session import Session


def what_if_text(measuring: Measuring | None, predicted: bool, on: bool) -> str:
    """One sentence about the metric after an edit; empty where it is measured."""
    if not predicted:
        return ""
    if measuring is not None and measuring.state == "failed":
        return _("Predicted; not measured: {why}").format(why=said(measuring.error))
    if measuring is not None and measuring.state == "declined":
        if math.isnan(measuring.seconds):
            return _("Predicted; nobody knows yet how long an evaluation takes.")
        took = formats.duration(measuring.seconds)
        return _("Predicted; an evaluation takes about {time}.").format(time=took)
    if measuring is not None and measuring.active:
        return _("Predicted; measuring …")
    return _("Predicted; measured when edits rest.") if on else _("Predicted.")


class WhatIf(View):
    """The sentence, "Measure now" where nobody does by himself, and the switch."""

    def __init__(self, session: Session, window: WindowState) -> None:
        super().__init__(session, window, LAYERS_TAB)
        self.text = ThemedHTML(sizing_mode=None, align="center")
        self.now = pmui.Button(
            label=_("Measure now"), variant="text", size="small", margin=0, visible=False
        )
        self.press(self.now, lambda: self.act(session.measure))
        self.switch = pmui.Switch(
            label=_("measure edits"),
            value=session.background,
            size="small",
            margin=0,
            align="center",
        )
        self.row = aligned(
            self.text,
            self.now,
            self.switch,
            styles={"margin-left": "auto"},
        )
        self.watch(self.switch, self._switched, "value")
        self.watch(session, self.update, "summary", "layers", "measuring", "background", "job")
        self.update()

    def _switched(self) -> None:
        wanted = bool(self.switch.value)
        if wanted != self.session.background:
            self.act(lambda: self.session.set_background(wanted))
            self.update()  # a project that cannot be written stays as it was

    def update(self) -> None:
        session = self.session
        self.row.visible = session.measures
        if self.switch.value != session.background:
            self.switch.value = session.background
        predicted, measuring = session.summary.metric_is_prediction, session.measuring_this
        text = what_if_text(measuring, predicted, session.background)
        self.text.fill(f'<span class="wb-muted" role="status">{escape(text)}</span>')
        waits = measuring is None or not measuring.active
        by_itself = session.background and (measuring is None or measuring.state == "done")
        job = session.job
        idle = job is None or not job.active
        self.now.visible = predicted and waits and idle and not by_itself

    def __panel__(self) -> Any:
        return self.row
