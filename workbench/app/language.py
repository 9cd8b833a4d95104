"""The switch between languages: the choice stays in a cookie, the window as it was."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import param
from panel.custom import JSComponent

from workbench.app.i18n import COOKIE, _, languages
from workbench.app.style import VARIABLES
from workbench.app.window import WindowState

NAMES = {"en": "English", "zh": "中文"}
TAGS = {"zh": "zh-CN"}
TICKET_COOKIE = "workbench_window"
MOST_WAITING = 32
_CSS = """
.wb-language { font: inherit; font-size: 12.5px; height: 30px; padding: 0 2px; cursor: pointer;
  color: var(--wb-text); background: transparent; border: 1px solid transparent;
  border-radius: 4px; opacity: 0.85; }
.wb-language:hover { border-color: var(--wb-grid); }
.wb-language option { color: var(--wb-text); background: var(--panel-background-color, Canvas); }
.wb-language:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: 1px; }
"""

_waiting: OrderedDict[str, WindowState] = OrderedDict()


def keep(window: WindowState) -> str:
    """Remember what a window shows while its page loads again; the ticket gives it back."""
    ticket = secrets.token_urlsafe(12)
    values = {
        name: getattr(window, name) for name in window.param if name not in ("name", "notice")
    }
    _waiting[ticket] = WindowState(**values)
    while len(_waiting) > MOST_WAITING:
        _waiting.popitem(last=False)
    return ticket


def take_back(ticket: str) -> WindowState:
    """The window that ``keep`` remembered, once; a new one for any other ticket."""
    return _waiting.pop(ticket, None) or WindowState()


class LanguageSwitch(JSComponent):
    """A menu of languages; choosing one loads the page again, with ``window`` as it is."""

    language = param.String(default="en")
    languages = param.List(default=[])
    label = param.String(default="")
    cookies = param.List(default=[COOKIE, TICKET_COOKIE])
    ticket = param.String(default="")

    _esm: ClassVar[Path] = Path(__file__).with_name("language.js")

    def __init__(self, window: WindowState, language: str, **params: Any) -> None:
        super().__init__(
            language=language,
            languages=[[code, NAMES.get(code, code), TAGS.get(code, code)] for code in languages()],
            label=_("Language"),
            stylesheets=[VARIABLES, _CSS],
            **params,
        )
        self._window = window

    def _handle_msg(self, msg: Any) -> None:
        if isinstance(msg, dict) and msg.get("type") == "choose":
            self.ticket = keep(self._window)
