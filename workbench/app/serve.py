"""From a request to a page: what ``apps/main.py`` calls."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import panel as pn
from bokeh.document import Document
from bokeh.server.contexts import BokehSessionContext

from workbench.app.connection import Connection
from workbench.app.exposure import banner
from workbench.app.frame import Frame
from workbench.app.html import ThemedHTML, escape
from workbench.app.i18n import _, preferred, said, speak
from workbench.app.kept_window import TICKET_COOKIE, KeptWindow
from workbench.app.page import POLL_MS, WorkbenchPage
from workbench.app.project_picker import ProjectPicker
from workbench.app.projects import DEFAULT_EXAMPLE, open_project
from workbench.engine.errors import WorkbenchError

log = logging.getLogger("workbench.app.serve")

PAUSE_MS = 5  # while a page is built, for the scripts that its browser asks for


def argument(name: str) -> str:
    """An argument of the page's address, empty without one."""
    values = pn.state.session_args.get(name) if pn.state.session_args else None
    return values[0].decode("utf-8", "replace") if values else ""


def workbench_page() -> Any:
    """The page of the project in ``?project=``, the default example without one, at ``?tab=``.

    Its frame is answered at once: the page is built while the browser loads its scripts.
    """
    pn.extension("tabulator", sizing_mode=None, notifications=False)
    cookies = pn.state.cookies
    speak(preferred(argument("language"), cookies, pn.state.headers))
    name = argument("project") or DEFAULT_EXAMPLE
    window = KeptWindow(name, cookies.get(TICKET_COOKIE, ""), argument("tab"))
    frame = Frame(window.state.dark)
    steps = _build(frame, window, name)
    document = pn.state.curdoc
    if document is None or document.session_context is None:
        for _step in steps:
            pass
    else:
        _go_on(steps, document)
    return frame


def _go_on(steps: Iterator[None], document: Document) -> None:
    """Take the steps one by one; in between the server answers the browser's requests.

    A browser that connects meanwhile must not see the frame change while it draws it: it would
    miss that. What is left then follows when it is done.
    """

    def step(drawn: bool = False) -> None:
        if _connected(document) and not (drawn or pn.state.loaded):
            pn.state.onload(lambda: step(drawn=True))
            return
        for _done in steps:
            document.add_timeout_callback(step, PAUSE_MS)
            break

    document.add_timeout_callback(step, PAUSE_MS)


def _connected(document: Document) -> bool:
    context = document.session_context
    session = context.session if isinstance(context, BokehSessionContext) else None
    return session is not None and session.connection_count > 0


def _build(frame: Frame, window: KeptWindow, name: str) -> Iterator[None]:
    """Fill the frame, in pieces of some 100 ms; what goes wrong is said in it."""
    try:
        page = WorkbenchPage(open_project(name), window.state, frame)
        document = pn.state.curdoc

        def tick() -> None:
            # A page that was closed lives on for half a minute: it must not follow every edit.
            if document is None or _connected(document):
                page.poll()
            window.write()

        poll = pn.state.add_periodic_callback(tick, POLL_MS, start=False)
        pn.state.onload(poll.start)
        if document is not None:
            # No name of the served script may be needed here: its globals are gone by then.
            pn.state.on_session_destroyed(lambda _context: _end(page, poll))
        yield
        frame.header = [page.topbar]
        yield
        frame.main = [*_warnings(), page.content, Connection(window.ticket)]
    except WorkbenchError as error:
        frame.main = [ProjectPicker().alone(said(error.message), said(error.hint))]
    except Exception as error:
        log.exception("the page of %r could not be built", name)
        hint = _("The server's log has the details: {error}").format(error=repr(error))
        frame.main = [ProjectPicker().alone(_("The page could not be built"), hint)]


def _warnings() -> list[Any]:
    text = banner()
    shown = f'<div class="wb-notice" role="note">{escape(text)}</div>'
    return [ThemedHTML(shown, margin=(6, 14))] if text else []


def _end(page: WorkbenchPage, poll: Any) -> None:
    try:
        poll.stop()
    except Exception:
        log.debug("the poll had ended already", exc_info=True)
    page.dispose()
