"""What the tabs that make a smaller project have in common: pruning and decomposition."""

from __future__ import annotations

from typing import Any, ClassVar

import panel as pn
import panel_material_ui as pmui

from workbench.app.fold import Fold
from workbench.app.html import ThemedHTML, escape, notice
from workbench.app.i18n import _
from workbench.app.job_notice import JobNotice
from workbench.app.shrunk_result import made_from, shrunk_line, shrunk_result
from workbench.app.style import aligned
from workbench.app.view import View
from workbench.app.window import SEARCH_TAB, WindowState
from workbench.charts.words import job_sentence
from workbench.studio.session import Session


class ShrinkTab(View):
    """Settings in a fold, the job in words, and the new project when there is one.

    ``settings`` has a ``panel()``; ``invitation`` is shown before anything is known.
    """

    kind: ClassVar[str]
    """Of the new project, as ``Shrunk.kind``."""

    jobs: ClassVar[tuple[str, ...]]
    """Kinds of the jobs that this tab starts."""

    def __init__(
        self, session: Session, window: WindowState, settings: Any, invitation: str
    ) -> None:
        super().__init__(session, window, SEARCH_TAB)
        self.settings = settings
        self.invitation = invitation
        self.state = JobNotice(session, window, ("open", *self.jobs))
        self.parts = [self.state]
        self.origin = ThemedHTML(margin=(8, 0, 0, 0), visible=False)
        self.stop = self._button(_("Stop"), "stop", session.cancel)
        self.fold = Fold(window, self.kind, settings.panel)
        self.text = ThemedHTML(margin=(4, 0))
        self.done = ThemedHTML(margin=(4, 0))
        self.result = ThemedHTML(margin=(10, 0, 0, 0))
        self.watch(session, self.update_result, "shrunk", "origin", "summary")
        self.update_result()

    def _button(self, label: str, icon: str, action: Any, variant: str = "outlined") -> Any:
        button = pmui.Button(label=label, icon=icon, size="small", variant=variant, margin=0)
        self.press(button, lambda: self.act(lambda: action()))
        return button

    @property
    def busy(self) -> bool:
        """Whether any job is under way."""
        job = self.session.job
        return job is not None and bool(job.active)

    def update_text(self, *, known: bool) -> None:
        """What may be stopped, and one sentence; several times a second while a job runs."""
        job = self.session.job
        running = self.busy and job is not None and job.kind in self.jobs
        self.stop.disabled = not running
        text = ""
        if running and job is not None:
            words = job_sentence(job.kind, job.message)
            text = f'<div role="status">{escape(words)} …</div>'
        elif not known:
            text = notice(self.invitation)
        self.text.fill(text)

    def update_result(self) -> None:
        origin = made_from(self.session.origin)
        self.origin.fill(origin)
        self.origin.visible = bool(origin)
        trainable = self.session.project.source.trainable
        shrunk = self.session.shrunk
        self.result.fill(shrunk_result(shrunk, self.kind, trainable=trainable))
        self.done.fill(shrunk_line(shrunk, self.kind, trainable=trainable))

    def column(self, buttons: list[Any], *body: Any) -> Any:
        """The tab: ``buttons`` on top, then what is known."""
        return pn.Column(
            self.state,
            self.origin,
            aligned(
                *buttons, self.stop, self.fold.button,
                sizing_mode="stretch_width", margin=(10, 0, 6, 0),
            ),
            self.fold.body,
            self.text,
            self.done,
            *body,
            self.result,
            sizing_mode="stretch_width",
            margin=(0, 14, 10, 14),
        )  # fmt: skip
