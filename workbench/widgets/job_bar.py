"""The running job: progress, time left, Cancel; and the same under a cell that waits for one."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from workbench.charts import formats
from workbench.charts.spoken import said
from workbench.charts.text import _
from workbench.charts.words import job_state, job_title
from workbench.studio.state import JOB_KINDS
from workbench.widgets.polling import clock
from workbench.widgets.view import SessionView, button

if TYPE_CHECKING:
    from workbench.studio.session import Session
    from workbench.studio.state import JobState


class JobBar(SessionView):
    """Progress bar of the session's job; empty while there is none."""

    def __init__(self, session: Session, kinds: tuple[str, ...] = JOB_KINDS) -> None:
        self.kinds = kinds
        self.bar = w.IntProgress(min=0, max=1)
        self.bar.layout.width = "260px"
        self.label = w.HTML()
        self.cancel = button(
            _("Cancel"), self._cancel, tip=_("Stop the job; what is finished is kept")
        )
        self.line = w.HBox([self.bar, self.label, self.cancel])
        super().__init__(session, [self.line])
        self.watch(self.refresh, "job")
        self.refresh()

    def _cancel(self) -> None:
        self.act(self.session.cancel)

    def refresh(self) -> None:
        job = self.session.job
        if job is None or job.kind not in self.kinds:
            self.line.layout.display = "none"
            return
        active = job.active
        self.line.layout.display = ""
        # A search does not know how many trials it takes: a bar that never moves looks stuck.
        self.bar.layout.display = "none" if active and not job.total else ""
        self.bar.max = max(job.total, 1)
        self.bar.value = self.bar.max if job.state == "finished" else min(job.done, self.bar.max)
        self.bar.bar_style = {
            "finished": "success",
            "failed": "danger",
            "cancelled": "warning",
        }.get(job.state, "info")
        self.cancel.layout.display = "" if active else "none"
        self.label.value = f'<span class="wb-note">{job_text(job)}</span>'


def job_text(job: JobState) -> str:
    """One line of HTML that says where a job stands."""
    title = job_title(job.kind)
    if job.error is not None:
        hint = f" {html.escape(said(job.error.hint))}" if job.error.hint else ""
        return f'<span class="wb-bad">{html.escape(said(job.error.summary))}</span>{hint}'
    if job.state != "running":
        return f"{title}: {job_state(job.state)}"
    parts = [title]
    if job.message:
        parts.append(html.escape(said(job.message)))
    if job.total:
        parts.append(f"{100 * job.done // job.total} %")
    if job.seconds_left is not None:
        parts.append(_("{time} left").format(time=formats.duration(job.seconds_left)))
    return " · ".join(parts)


def show_jobs(session: Session) -> None:
    """Show a progress bar under every cell that waits for a job of ``session``."""
    state: dict[str, Any] = {"id": None, "bar": None}

    def follow(*_: Any) -> None:
        job = session.job
        if job is None:
            return
        if job.active:
            # The clock runs on behalf of the cell that started it, which is long over.
            if state["id"] != job.id and _in_a_cell() and not clock(session).ticking:
                from IPython.display import display

                state["id"] = job.id
                state["bar"] = JobBar(session)
                display(state["bar"])
        elif state["bar"] is not None:
            # The bar stays as a record of what ran, but no longer follows the session.
            bar, state["bar"] = state["bar"], None
            bar.refresh()
            bar.release()

    session.param.watch(follow, ["job"])


def _in_a_cell() -> bool:
    """Whether a notebook cell is running now (and not a button's callback)."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return False
    parent = kernel.get_parent("shell") or {}
    return bool(parent.get("header", {}).get("msg_type") == "execute_request")
