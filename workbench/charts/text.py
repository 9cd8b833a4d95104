"""Every text a person reads goes through here, on its way from English to the reader's language.

Texts are English in the code and translated when they are shown: ``_`` for a text, ``ngettext``
where a number decides its form, ``N_`` for a constant that is translated where it is used.
"""

from __future__ import annotations

import contextlib
import functools
import gettext
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

DOMAIN = "workbench"
LOCALES = Path(__file__).parents[1] / "locale"
ENGLISH = "en"

Catalogue = gettext.NullTranslations

_here: ContextVar[Catalogue | None] = ContextVar("workbench_catalogue", default=None)
_chosen: list[Catalogue] = []  # by ``use_language``, for the whole process
_windows: list[Callable[[], Catalogue | None]] = []


@functools.cache
def languages() -> tuple[str, ...]:
    """Languages there is text for: English, and every compiled catalogue."""
    found = LOCALES.glob(f"*/LC_MESSAGES/{DOMAIN}.mo")
    return (ENGLISH, *sorted(path.parts[-3] for path in found))


def matching(wanted: str) -> str:
    """The language among ``languages`` that ``wanted`` asks for, "" if none.

    ``zh-CN``, ``zh_CN.UTF-8`` and ``zh`` all ask for ``zh``.
    """
    base = wanted.replace("_", "-").split(".")[0].split("-")[0].strip().lower()
    return base if base in languages() else ""


@functools.cache
def catalogue(language: str) -> Catalogue:
    """The texts of ``language``; the English ones when there is no catalogue for it."""
    known = matching(language)
    if known in ("", ENGLISH):
        return Catalogue()
    return gettext.translation(DOMAIN, LOCALES, [known])


def use_language(language: str) -> None:
    """Show text in ``language`` in this process from here on.

    Errors: ``ValueError`` for a language without a catalogue.
    """
    known = matching(language)
    if not known:
        raise ValueError(f"language {language!r} is not known. Allowed: {', '.join(languages())}.")
    _chosen[:] = [catalogue(known)]


@contextlib.contextmanager
def speaking(texts: Catalogue) -> Iterator[None]:
    """Translate with ``texts`` in this context, whatever the process and the window say."""
    token = _here.set(texts)
    try:
        yield
    finally:
        _here.reset(token)


def ask_windows(texts_of_window: Callable[[], Catalogue | None]) -> None:
    """Let a front end with several readers say whose text is asked for; None: it does not know."""
    _windows[:] = [texts_of_window]


def current() -> Catalogue:
    """The catalogue of the current context, window or process, the first that has one.

    The process's is that of ``use_language``, else of ``WORKBENCH_LANGUAGE``, else of the locale.
    """
    found = _here.get()
    if found is not None:
        return found
    for ask in _windows:
        found = ask()
        if found is not None:
            return found
    return _chosen[0] if _chosen else _of_environment()


@functools.cache
def _of_environment() -> Catalogue:
    for name in ("WORKBENCH_LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        given = os.environ.get(name, "")
        if given:  # the first that is set decides, as in the C library
            return catalogue(given)
    return Catalogue()


def _(message: str) -> str:
    """``message`` in the reader's language."""
    return current().gettext(message) if message else ""


def ngettext(one: str, many: str, count: int) -> str:
    """``one`` or ``many`` by ``count``, in the reader's language; ``{n}`` is still to be filled."""
    return current().ngettext(one, many, count)


def N_(message: str) -> str:
    """Marks a constant for the catalogue; ``_`` translates it where it is shown."""
    return message
