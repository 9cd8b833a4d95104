"""A job's progress on the terminal; nothing where nobody looks."""

from __future__ import annotations

import re
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from workbench.studio.session import Session


_NUMBER = re.compile(r"\d[\d.]*(e[-+]\d+)?")


class Terminal:
    """One line on stderr that follows the session's job while this is entered.

    On a terminal it is a bar; elsewhere a line for each kind of step and each tenth of the job, so
    that a log tells the story.
    """

    def __init__(self, session: Session, title: str, *, silent: bool = False) -> None:
        self._session = session
        self._console = Console(stderr=True, quiet=silent)
        self._live = self._console.is_terminal and not silent
        self._kinds: set[str] = set()
        self._tenth = 0
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
        elif job.message and self._is_news(job.message, job.done, job.total):
            text = f"{self._session.project.name}: {job.message}"
            self._console.print(text, highlight=False, soft_wrap=True)

    def _is_news(self, message: str, done: int, total: int) -> bool:
        """Whether the log has not this kind of step yet, or not this tenth of the job."""
        kind = _NUMBER.sub("", message)
        tenth = 10 * done // total if total else self._tenth
        news = kind not in self._kinds or tenth > self._tenth
        self._kinds.add(kind)
        self._tenth = max(self._tenth, tenth)
        return news

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
