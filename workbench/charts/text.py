"""One function for every text a person reads, so that a translation can follow."""

from __future__ import annotations

import gettext
from contextvars import ContextVar

_catalogue: ContextVar[gettext.NullTranslations | None] = ContextVar(
    "workbench_catalogue", default=None
)


def use_catalogue(catalogue: gettext.NullTranslations | None) -> None:
    """Translate with ``catalogue`` in the current context (one browser session, one thread)."""
    _catalogue.set(catalogue)


def _(message: str) -> str:
    """``message`` in the language of the current context; English without a catalogue."""
    catalogue = _catalogue.get()
    return catalogue.gettext(message) if catalogue is not None else message
