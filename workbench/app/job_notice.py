"""What became of the last job of a kind, in words, at the top of the tab it belongs to."""

from __future__ import annotations

from typing import Any

from workbench.app.html import ThemedHTML, escape, failure, notice
from workbench.app.i18n import _
from workbench.app.view import View
from workbench.app.window import WindowState
from workbench.studio.session import Session


def job_title(kind: str) -> str:
    """A job's kind as a person calls it."""
    return {
        "open": _("Opening the model"),
        "analyse": _("Analysing"),
        "inspect": _("Comparing"),
        "search": _("Searching"),
        "train": _("Training"),
        "formats": _("Measuring formats"),
        "quantize": _("Quantising"),
        "evaluate": _("Evaluating"),
        "export": _("Exporting"),
    }.get(kind, kind)


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
                    job_title(job.kind) + ": " + _("cancelled. What was finished is kept.")
                )
            elif job.kind == "open" and job.active:
                text = f'<div class="wb-info" role="status">{escape(job_title("open"))} …</div>'
        self.pane.fill(text)
        self.pane.visible = bool(text)

    def __panel__(self) -> Any:
        return self.pane
