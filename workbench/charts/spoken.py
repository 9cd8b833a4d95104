"""What a job, a record or an error says, in the reader's language.

Such texts are made in another process and kept in the project, in English. A catalogue holds them
as templates (``"evaluating {path} in ONNX Runtime"``), so a text with values in it is first matched
against these. What matches none is shown as it is.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from workbench.charts.text import current

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workbench.charts.text import Catalogue
    from workbench.engine.errors import WorkbenchError

_FIELD = re.compile(r"\{(\w+)\}")
_LONGEST = 2000  # no text of ours; matching takes time that grows faster than its length
_FEWEST_LETTERS = 8  # a template with fewer of its own would match nearly everything


def said(text: str) -> str:
    """``text`` of the engine or of a job, translated where the catalogue has it."""
    return _translated(current(), text)


def sentence(text: str) -> str:
    """``said(text)`` where it stands alone; for texts that begin with a word, not with a name."""
    words = said(text)
    return words[:1].upper() + words[1:]


def error_text(error: WorkbenchError, *, where: bool = True) -> str:
    """``str(error)`` in the reader's language: where, unless left out, what, what to do next."""
    text = said(error.message) if where else sentence(error.message)
    if where and error.where:
        text = f"{error.where}: {text}"
    return text + _stop(text[-1:]) + said(error.hint) if error.hint else text


def _stop(last: str) -> str:
    """What ends a sentence with this last character, up to the next one."""
    if last in "。！？":
        return ""
    if "\u4e00" <= last <= "\u9fff":
        return "。"
    return " " if last in ".!?" else ". "


@functools.lru_cache(maxsize=4096)
def _translated(texts: Catalogue, text: str) -> str:
    found = texts.gettext(text) if text else text
    if found != text or len(text) > _LONGEST:
        return found
    for pattern, template in _templates(texts):
        match = pattern.fullmatch(text)
        if match is not None:
            return _filled(template, match.groupdict(), texts)
    return text


def _filled(template: str, values: Mapping[str, str], texts: Catalogue) -> str:
    """``values`` put into ``template``; sentences among them are translated, names are not."""

    def value(field: re.Match[str]) -> str:
        text = values.get(field[1], field[0])
        return _translated(texts, text) if " " in text else text

    return _FIELD.sub(value, template)


@functools.lru_cache(maxsize=8)
def _templates(texts: Catalogue) -> tuple[tuple[re.Pattern[str], str], ...]:
    """Templates of a catalogue with values in them, those with most letters of their own first."""
    entries: Mapping[object, str] = getattr(texts, "_catalog", {})
    found = [
        (len(re.findall(r"[A-Za-z]", _FIELD.sub("", key))), key, value)
        for key, value in entries.items()
        if isinstance(key, str) and _FIELD.search(key)
    ]
    return tuple(
        (_pattern(key), value)
        for letters, key, value in sorted(found, reverse=True)
        if letters >= _FEWEST_LETTERS
    )


def _pattern(template: str) -> re.Pattern[str]:
    """``template`` with its fields as groups; a field that comes twice must be the same."""
    seen: set[str] = set()
    text = ""
    for index, part in enumerate(_FIELD.split(template)):
        if index % 2 == 0:
            text += re.escape(part)
        elif part in seen:
            text += f"(?P={part})"
        else:
            seen.add(part)
            text += f"(?P<{part}>.+?)"
    return re.compile(text, re.DOTALL)
