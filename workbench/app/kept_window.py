"""What a window shows, kept in the workspace until its page loads again.

The browser holds a ticket. When the page is left it becomes a cookie, so that the very next request
brings it: a reload, another language, or the return after the connection was lost.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from pathlib import Path

from workbench.app.projects import home
from workbench.app.window import TABS, WindowState
from workbench.engine.files.atomic import replace_on_success

log = logging.getLogger("workbench.app.window")

TICKET_COOKIE = "workbench_window"
MOST_KEPT = 200
TICKET = re.compile(r"[A-Za-z0-9_-]{16}")


def windows_folder() -> Path:
    return home() / "windows"


class KeptWindow:
    """The ``state`` of the window with a ``ticket``, as it was left on the same project.

    Nothing is kept of a window in which nothing was changed, and its ticket stays its own. A ticket
    of another project, or what is no ticket, is answered with a new window and a new ticket, which
    shows the ``tab`` of that name first.
    """

    def __init__(self, project: str, ticket: str = "", tab: str = "") -> None:
        self.project = project
        kept = _read(ticket)
        if not TICKET.fullmatch(ticket) or kept.get("project", project) != project:
            kept, ticket = {}, secrets.token_urlsafe(12)
        self.ticket = ticket
        first = {"tab": TABS.index(tab)} if tab in TABS else {}
        window = kept.get("window")
        self.state = WindowState.restored(first | (window if isinstance(window, dict) else {}))
        self._changed = False
        self.state.follow(self._note)

    @property
    def path(self) -> Path:
        return windows_folder() / f"{self.ticket}.json"

    def _note(self) -> None:
        self._changed = True

    def write(self) -> None:
        """Keep what changed since the last call; a full disk costs the view, not the page."""
        if not self._changed:
            return
        self._changed = False
        text = json.dumps({"project": self.project, "window": self.state.values_kept()})
        try:
            new = not self.path.exists()
            with replace_on_success(self.path) as path:
                path.write_text(text, encoding="utf-8")
            if new:
                _forget_oldest()
        except OSError as error:
            log.warning("what a window shows could not be kept: %s", error)


def _read(ticket: str) -> dict[str, object]:
    if not TICKET.fullmatch(ticket):
        return {}
    try:
        found = json.loads((windows_folder() / f"{ticket}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _forget_oldest() -> None:
    found = sorted(windows_folder().glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in found[:-MOST_KEPT]:
        path.unlink(missing_ok=True)
