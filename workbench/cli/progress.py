"""A job's progress on the terminal; nothing where nobody looks."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from workbench.studio.session import Session


class Terminal:
    """One line on stderr that follows the session's job while this is entered.

    On a terminal it is a bar; elsewhere each new step is a line, so that a log tells the story.
    """

    def __init__(self, session: Session, title: str, *, silent: bool = False) -> None:
        self._session = session
        self._console = Console(stderr=True, quiet=silent)
        self._live = self._console.is_terminal and not silent
        self._said = ""
        self._bar = Progress(
            TextColumn("{task.fields[project]}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._bar.add_task(title, total=None, project=session.project.name)
        self._watcher = session.param.watch(lambda *_: self._follow(), ["job"])

    def _follow(self) -> None:
        job = self._session.job
        if job is None:
            return
        if self._live:
            total = job.total or None
            text = job.message
            self._bar.update(self._task, completed=job.done, total=total, description=text)
        elif job.message and job.message != self._said:
            self._said = job.message
            text = f"{self._session.project.name}: {job.message}"
            self._console.print(text, highlight=False, soft_wrap=True)

    def __enter__(self) -> Terminal:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session.param.unwatch(self._watcher)
        self._bar.stop()
