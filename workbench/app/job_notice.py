"""What became of the last job of a kind, in words, at the top of the tab it belongs to."""

from __future__ import annotations

from typing import Any

from workbench.app.html import ThemedHTML, escape, failure, notice
from workbench.app.i18n import _
from workbench.app.view import View
from workbench.app.window import WindowState
from workbench.charts.words import job_title
from workbench.studio.session import Session


class JobNotice(View):
    """Running, failed and cancelled states of the jobs in ``kinds``; empty otherwise."""

    def __init__(self, session: Session, window: WindowState, kinds: tuple[str, ...]) -> None:
        super().__init__(session, window)
        self.kinds = kinds
        self.pane = ThemedHTML(visible=False, margin=(8, 0))
        self.watch(session, self.update, "job")
        self.update()

    def update(self) -> None:
        job = self.session.job
        text = ""
        if job is not None and job.kind in self.kinds:
            if job.state == "failed" and job.error is not None:
                text = failure(job.error)
            elif job.state == "cancelled":
                text = notice(
                    _("{job}: cancelled. What was finished is kept.").format(
                        job=job_title(job.kind)
                    )
                )
            elif job.kind == "open" and job.active:
                text = f'<div class="wb-info" role="status">{escape(job_title("open"))} …</div>'
        self.pane.fill(text)
        self.pane.visible = bool(text)

    def __panel__(self) -> Any:
        return self.pane
