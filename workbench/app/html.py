"""Small HTML pieces; every text that comes from outside is escaped here."""

from __future__ import annotations

from html import escape
from typing import Any

import panel as pn

from workbench.app.i18n import _, said
from workbench.app.style import CSS, VARIABLES
from workbench.studio.state import ErrorText

__all__ = ["ThemedHTML", "building", "escape", "failure", "notice"]


class ThemedHTML(pn.pane.HTML):
    """An HTML pane in the page's look."""

    def __init__(self, object: str = "", **params: Any) -> None:
        params.setdefault("margin", 0)
        params.setdefault("sizing_mode", "stretch_width")
        super().__init__(object, stylesheets=[VARIABLES, CSS], **params)

    def fill(self, text: str) -> None:
        """Replace the content, unless it is the same already."""
        if self.object != text:
            self.object = text


def failure(error: ErrorText) -> str:
    """What happened in one sentence, what to do next, and the details folded away."""
    text = f'<div class="wb-notice" role="alert"><b>✕ {escape(said(error.summary))}</b>'
    if error.hint:
        text += f"<br>{escape(said(error.hint))}"
    if error.details:
        text += (
            f"<details><summary>{escape(_('Details'))}</summary>"
            f'<pre class="wb">{escape(error.details)}</pre></details>'
        )
    return text + "</div>"


def notice(text: str) -> str:
    return f'<div class="wb-info" role="status">{escape(text)}</div>'


def building() -> ThemedHTML:
    """What stands where a part of the page is being built."""
    lines = "<i></i>" * 4
    words = escape(_("This part is being built …"))
    return ThemedHTML(
        f'<div class="wb-building" role="status"><span>{words}</span>{lines}</div>',
        margin=(18, 14),
    )
