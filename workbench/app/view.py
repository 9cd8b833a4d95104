"""Base of every part of the page: it watches, it shows, and it lets go again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import panel as pn
import param
from panel.io import hold
from panel.viewable import Viewer

from workbench.app.i18n import error_text
from workbench.app.window import WindowState
from workbench.engine.errors import WorkbenchError
from workbench.studio.session import Session

log = logging.getLogger("workbench.app")


def when_drawn(action: Callable[[], None]) -> None:
    """Do it now, or as soon as the browser has drawn the page.

    What ``hold`` collects before that never reaches the browser: Panel believes that it has not
    pulled the document yet, but it has, and whoever is quick may be clicking already.
    """
    if pn.state.loaded:
        action()
    else:
        pn.state.onload(action)


class View(Viewer):
    """A part of the page bound to ``session`` and ``window``.

    ``watch`` isolates faults: an exception in one view is logged and the others still update.
    A view with a ``tab`` follows only while that tab is in front, and catches up when it comes
    there. ``dispose`` removes every watcher, the views in ``parts`` included.
    """

    def __init__(self, session: Session, window: WindowState, tab: int | None = None) -> None:
        super().__init__()
        self.tab = tab
        self._missed: dict[Callable[[], None], str] = {}
        self.session = session
        self.window = window
        self.parts: list[View] = []
        self._watched: list[tuple[param.Parameterized, Any]] = []
        if tab is not None:
            self._watched.append((window, window.param.watch(self._catch_up, ["tab"])))

    def watch(self, source: param.Parameterized, callback: Callable[[], None], *names: str) -> None:
        """Call ``callback`` when any of ``names`` of ``source`` changes, once per batch."""

        what = ", ".join(names)

        def call(*_events: Any) -> None:
            if self.tab is not None and self.tab != self.window.tab:
                self._missed[callback] = what
            else:
                self._follow(callback, what)

        self._watched.append((source, source.param.watch(call, list(names))))

    def _follow(self, callback: Callable[[], None], what: str) -> None:
        try:
            callback()
        except Exception:
            log.exception("%s could not follow %s", type(self).__name__, what)

    def _catch_up(self, *_events: Any) -> None:
        if self.tab == self.window.tab:
            missed, self._missed = self._missed, {}
            for callback, what in missed.items():
                self._follow(callback, what)

    def act(self, action: Callable[[], Any]) -> bool:
        """Do what the user asked for; a refusal becomes the window's notice. True if it worked.

        Before the page is drawn it is done a moment later, and True is only its promise.
        """
        worked = True

        def attempt() -> None:
            nonlocal worked
            try:
                with hold():  # one message for all views, and one redraw
                    action()
            except WorkbenchError as error:
                self.window.notice = error_text(error)
                worked = False

        when_drawn(attempt)
        return worked

    def press(self, button: Any, action: Callable[[], Any]) -> None:
        """Do ``action`` when ``button`` is pressed."""

        def pressed(_event: Any) -> None:
            action()

        button.on_click(pressed)

    def dispose(self) -> None:
        for part in self.parts:
            part.dispose()
        for source, watcher in self._watched:
            source.param.unwatch(watcher)
        self._watched.clear()
