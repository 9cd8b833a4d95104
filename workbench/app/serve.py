"""From a request to a page: what ``apps/main.py`` calls."""

from __future__ import annotations

import logging
from typing import Any

import panel as pn

from workbench.app.i18n import preferred, said, speak
from workbench.app.language import TICKET_COOKIE, take_back
from workbench.app.page import POLL_MS, WorkbenchPage
from workbench.app.project_picker import ProjectPicker
from workbench.app.projects import DEFAULT_EXAMPLE, open_project
from workbench.engine.errors import WorkbenchError

log = logging.getLogger("workbench.app.serve")


def argument(name: str) -> str:
    """An argument of the page's address, empty without one."""
    values = pn.state.session_args.get(name) if pn.state.session_args else None
    return values[0].decode("utf-8", "replace") if values else ""


def workbench_page() -> Any:
    """The page of the project in ``?project=``; the default example without one."""
    pn.extension("plotly", "tabulator", sizing_mode=None, notifications=False)
    cookies = pn.state.cookies
    speak(preferred(argument("language"), cookies, pn.state.headers))
    name = argument("project") or DEFAULT_EXAMPLE
    try:
        session = open_project(name)
    except WorkbenchError as error:
        return ProjectPicker().alone(said(error.message), said(error.hint))
    page = WorkbenchPage(session, take_back(cookies.get(TICKET_COOKIE, "")))
    poll = pn.state.add_periodic_callback(page.poll, POLL_MS)
    if pn.state.curdoc is not None:
        # No name of the served script may be needed here: its globals are gone by then.
        pn.state.on_session_destroyed(lambda _context: _end(page, poll))
    return page


def _end(page: WorkbenchPage, poll: Any) -> None:
    try:
        poll.stop()
    except Exception:
        log.debug("the poll had ended already", exc_info=True)
    page.dispose()
