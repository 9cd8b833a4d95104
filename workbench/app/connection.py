"""The window's tie to the server: says when it is lost, and brings the window back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import param
from panel.custom import JSComponent

from workbench.app.i18n import _
from workbench.app.kept_window import TICKET_COOKIE
from workbench.app.style import VARIABLES

_CSS = """
.wb-lost { position: fixed; top: 10px; left: 50%; transform: translateX(-50%); z-index: 2000;
  display: flex; align-items: center; gap: 14px; max-width: min(760px, calc(100vw - 32px));
  box-sizing: border-box; padding: 10px 14px; border-radius: 4px; line-height: 1.4;
  color: var(--wb-text); background: var(--panel-background-color, Canvas);
  border: 1px solid var(--wb-grid); border-left: 3px solid var(--wb-bad);
  box-shadow: 0 4px 16px rgb(0 0 0 / 25%); }
.wb-lost[hidden] { display: none; }
.wb-lost button { font: inherit; font-weight: 500; flex: none; height: 30px; padding: 0 12px;
  cursor: pointer; color: var(--wb-accent); background: transparent;
  border: 1px solid currentColor; border-radius: 4px; }
.wb-lost button:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: 2px; }
"""


class Connection(JSComponent):
    """Panel says nothing when its connection breaks; this does, and loads the page again.

    The browser asks every few seconds whether the server still answers, as some broken connections
    are never closed. ``ticket`` brings the window back as it was: see ``kept_window``.
    """

    ticket = param.String(default="")
    cookie = param.String(default=TICKET_COOKIE)
    words = param.Dict(default={})

    _esm: ClassVar[Path] = Path(__file__).with_name("connection.js")

    def __init__(self, ticket: str, **params: Any) -> None:
        words = {
            "lost": _("The connection to the server is lost."),
            "safe": _(
                "The project is safe, and a job that runs goes on. This page comes back as it is "
                "as soon as the server answers; if it was stopped, start it again."
            ),
            "still": _("The server does not answer yet."),
            "again": _("The connection was lost again a moment ago. Reconnect when you are ready."),
            "button": _("Reconnect"),
        }
        super().__init__(
            ticket=ticket, words=words, stylesheets=[VARIABLES, _CSS], margin=0, **params
        )

    def _handle_msg(self, msg: Any) -> None:
        if msg == "still there?":
            self._send_msg("yes")
