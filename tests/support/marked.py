"""A language in which every translated text is in brackets, and what a page shows without them."""

from __future__ import annotations

import gettext
import html
import json
import re
from collections.abc import Iterator
from typing import Any

OPEN, CLOSE = "⟦", "⟧"


class Marked(gettext.NullTranslations):
    """Puts every text of the catalogue between brackets; its values stay where they are."""

    def gettext(self, message: str) -> str:
        return f"{OPEN}{message}{CLOSE}"

    def ngettext(self, one: str, many: str, count: int) -> str:
        return self.gettext(one if count == 1 else many)

    def info(self) -> dict[str, str]:
        return {"language": "marked"}


_INNERMOST = re.compile(f"{OPEN}[^{OPEN}{CLOSE}]*{CLOSE}")
_TAGS = re.compile(r"<pre.*?</pre>|<code.*?</code>|<[^>]*>|%\{[^}]*\}", re.DOTALL)
_FILES = re.compile(r"[\w./-]+\.(onnx|pt|npz|json|py|cfg|txt)\b")
_WORD = re.compile(r"[A-Za-zéü][A-Za-z]+")


def unmarked(text: str, known: frozenset[str]) -> list[str]:
    """Words of ``text`` outside the brackets, beside ``known`` ones; HTML tags are no words."""
    text = _FILES.sub(" ", html.unescape(_TAGS.sub(" ", text)))
    while _INNERMOST.search(text):
        text = _INNERMOST.sub(" ", text)
    for name in sorted(known, key=len, reverse=True):
        text = re.sub(rf"(?<![A-Za-z]){re.escape(name)}(?![A-Za-z])", " ", text)
    return _WORD.findall(text)


_ATTRIBUTES = (
    "label", "description", "placeholder", "title", "name", "some", "none", "lost", "done",
    "failed", "names",
)  # fmt: skip
_FIGURE = ("text", "name", "ticktext", "hovertext", "hovertemplate", "label", "title", "labels")


def panel_texts(view: Any) -> Iterator[tuple[str, str]]:
    """(where, text) of everything that a part of a page shows."""
    import panel as pn

    if hasattr(view, "__panel__"):
        view = view.__panel__()
    for one in view.select(lambda _: True):
        kind = type(one).__name__
        if isinstance(one, pn.pane.HTML):
            yield f"{kind}.object", str(one.object or "")
            yield from ((f"{kind}.{x}", t) for x, t in _attribute_texts(str(one.object or "")))
        for name in _ATTRIBUTES:
            value = getattr(one, name, None)
            if name == "name" and (not isinstance(value, str) or re.fullmatch(r"\w+?\d{5}", value)):
                continue
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str):
                    yield f"{kind}.{name}", text
        options = getattr(one, "options", None)
        for text in options if isinstance(options, dict | list) else ():
            yield f"{kind}.options", str(text)
        for item in getattr(one, "items", None) or ():
            yield f"{kind}.items", str(item.get("label", "") if isinstance(item, dict) else item)
        if isinstance(one, pn.widgets.Tabulator):
            titles = one.titles
            yield from ((f"{kind}.titles", titles.get(c, c)) for c in one.value.columns)
            for column in one.value.select_dtypes(object):
                yield from ((f"{kind}.{column}", str(cell)) for cell in one.value[column])
        if kind == "Plot":
            figure = json.loads(one.figure)
            yield from _figure_texts(figure, kind)
            yield from _figure_texts(json.loads(one.texts), kind)


def _attribute_texts(text: str) -> Iterator[tuple[str, str]]:
    return iter(re.findall(r'\b(title|aria-label|alt|placeholder)="([^"]*)"', text))


def _figure_texts(node: Any, where: str, shown: bool = False) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        quiet = node.get("showlegend") is False or node.get("type") == "heatmap"
        for key, value in node.items():
            if key not in ("template", "shapes", "meta", "type", "customdata") and not (
                quiet and key == "name"
            ):
                yield from _figure_texts(value, f"{where}.{key}", key in _FIGURE)
    elif isinstance(node, list):
        for value in node:
            yield from _figure_texts(value, where, shown)
    elif isinstance(node, str) and shown:
        yield where, node


def widget_texts(view: Any) -> Iterator[tuple[str, str]]:
    """The same of an ipywidget and everything in it."""
    import ipywidgets as w
    import plotly.graph_objects as go

    kind = type(view).__name__
    if isinstance(view, go.FigureWidget):
        yield from _figure_texts(view.to_plotly_json(), kind)
        return
    if isinstance(view, w.HTML):
        yield f"{kind}.value", re.sub(r"<style>.*?</style>", "", view.value, flags=re.DOTALL)
    for name in ("description", "tooltip", "placeholder", "note"):
        value = getattr(view, name, None)
        if isinstance(value, str):
            yield f"{kind}.{name}", value
    for text in getattr(view, "_options_labels", ()):
        yield f"{kind}.options", str(text)
    for text in getattr(view, "titles", ()) or ():
        yield f"{kind}.titles", str(text)
    for child in getattr(view, "children", ()):
        yield from widget_texts(child)
