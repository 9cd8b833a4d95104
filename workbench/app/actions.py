"""Analyse, Auto-calibrate and Export, always in reach, and the job that runs now."""

from __future__ import annotations

import time
from typing import Any

import panel_material_ui as pmui

from workbench.app.html import ThemedHTML, escape
from workbench.app.i18n import _, sentence
from workbench.app.rows import any_eligible
from workbench.app.search_settings import SearchSettings
from workbench.app.style import aligned
from workbench.app.view import View
from workbench.app.window import EXPORT_TAB, SEARCH_TAB, WindowState
from workbench.charts import formats
from workbench.charts.words import job_state, job_title
from workbench.studio.session import Session
from workbench.studio.state import JobState


def progress_text(job: JobState) -> str:
    """``Analysing · 40 % · 8 s left``, as far as it is known."""
    text = job_title(job.kind)
    if job.state in ("queued", "paused", "cancelling"):
        return f"{text} · {job_state(job.state)}"
    if job.total and job.kind != "open":  # its steps mean nothing to a reader
        text += f" · {formats.percent(job.done / job.total)}"
    if job.seconds_left is not None:
        left = _("{time} left").format(time=formats.duration(job.seconds_left))
        text += f" · {left}"
    elif job.started:
        text += f" · {formats.duration(time.time() - job.started)}"
    return text


class Actions(View):
    """The three buttons and, while a job runs, its progress and Cancel."""

    def __init__(self, session: Session, window: WindowState, settings: SearchSettings) -> None:
        super().__init__(session, window)
        self.settings = settings
        self.analyse = self._button(_("Analyse"), lambda: session.analyse(wait=False), None)
        self.search = self._button(_("Auto-calibrate"), self.start_search, SEARCH_TAB)
        self.export = self._button(_("Export"), lambda: session.export(wait=False), EXPORT_TAB)
        self.text = ThemedHTML(
            width=236,  # the tabs beside it stay whole at 1280 pixels
            align="center",
            sizing_mode=None,
            styles={"text-align": "right"},
        )
        self.bar = pmui.LinearProgress(
            width=60, value=0, margin=0, align="center", label=_("Progress of the job")
        )
        self.cancel = pmui.Button(
            label=_("Cancel"), variant="outlined", color="error", size="small", margin=0
        )
        self.press(self.cancel, lambda: self.act(session.cancel))
        self.running = aligned(visible=False)
        self.watch(session, self.update, "job", "layers")
        self.update()

    def _button(self, label: str, action: Any, tab: int | None) -> Any:
        button = pmui.Button(
            label=label, icon="play_arrow", size="small", margin=0, disable_elevation=True
        )

        def clicked(_event: Any) -> None:
            if self.act(action) and tab is not None:
                self.window.tab = tab

        button.on_click(clicked)
        return button

    def start_search(self) -> None:
        self.session.auto_calibrate(**self.settings.arguments(), wait=False)

    def update(self) -> None:
        job = self.session.job
        active = job is not None and job.active
        empty = not any_eligible(self.session.layers)
        for button in (self.analyse, self.search, self.export):
            button.disabled = active or empty
        if active and not len(self.running):  # not before a job runs: the first paint is dear
            self.running.objects = [self.text, self.bar, self.cancel]
        self.running.visible = active
        if job is not None and active:
            self.text.fill(
                f'<div role="status" class="wb-fit" title="{escape(sentence(job.message))}">'
                f"{escape(progress_text(job))}</div>"
            )
            known = bool(job.total) or job.state == "paused"
            self.bar.variant = "determinate" if known else "indeterminate"
            share = job.done / job.total if job.total else 0.0
            self.bar.value = round(100 * share) if known else -1

    def __panel__(self) -> Any:
        return aligned(
            self.running,
            self.analyse,
            self.search,
            self.export,
            margin=(0, 12, 0, 0),
            styles={"margin-left": "auto", "padding-left": "14px", "justify-content": "flex-end"},
        )
