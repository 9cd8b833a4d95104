"""The language of each browser window, and its texts; charts and studio follow the same one."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

import panel as pn
from bokeh.document import Document

from workbench.charts.spoken import error_text, said, sentence
from workbench.charts.text import (
    ENGLISH,
    N_,
    Catalogue,
    _,
    ask_windows,
    catalogue,
    current,
    languages,
    matching,
    ngettext,
)

__all__ = [
    "COOKIE",
    "N_",
    "_",
    "error_text",
    "language",
    "languages",
    "ngettext",
    "preferred",
    "said",
    "sentence",
    "speak",
]

COOKIE = "workbench_language"

# A context variable would not do: every message of a browser comes in a context of its own.
_spoken: WeakKeyDictionary[Document, Catalogue] = WeakKeyDictionary()


def speak(language: str) -> None:
    """Show text in ``language`` in the window whose page is being built or called."""
    document = pn.state.curdoc
    if document is not None:
        _spoken[document] = catalogue(language)


def _of_window() -> Catalogue | None:
    document = pn.state.curdoc
    return _spoken.get(document) if document is not None else None


def language() -> str:
    """The language of the window whose page is being built or called."""
    info = current().info()
    return matching(info.get("language", "")) or ENGLISH


def preferred(asked: str, cookies: Mapping[str, str], headers: Mapping[str, object]) -> str:
    """The language of a request: ``asked`` for in its address, chosen before, or the browser's."""
    for wanted in (asked, cookies.get(COOKIE, "")):
        if matching(wanted):
            return matching(wanted)
    given = headers.get("Accept-Language") or headers.get("accept-language") or ""
    text = (
        given
        if isinstance(given, str)
        else ",".join(map(str, given))
        if isinstance(given, list)
        else ""
    )
    ranked = sorted(map(_weighted, text.split(",")), key=lambda pair: -pair[1])
    return next((matching(tag) for tag, weight in ranked if weight > 0 and matching(tag)), ENGLISH)


def _weighted(entry: str) -> tuple[str, float]:
    """``zh-CN;q=0.8`` as its tag and weight."""
    tag, _sep, parameter = entry.partition(";")
    try:
        weight = float(parameter.strip().removeprefix("q=")) if parameter.strip() else 1.0
    except ValueError:
        weight = 0.0
    return tag.strip(), weight


ask_windows(_of_window)
