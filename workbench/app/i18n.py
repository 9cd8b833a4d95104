"""Interface text in the language of the session; the charts' text goes the same way."""

from __future__ import annotations

import gettext
from pathlib import Path

from workbench.charts.text import _, use_catalogue

__all__ = ["_", "languages", "use_language"]

_FOLDER = Path(__file__).with_name("locale")
_DOMAIN = "workbench"


def languages() -> tuple[str, ...]:
    """Languages there is text for: English, and every catalogue beside this file."""
    found = _FOLDER.glob(f"*/LC_MESSAGES/{_DOMAIN}.mo") if _FOLDER.is_dir() else ()
    return ("en", *sorted(path.parts[-3] for path in found))


def use_language(language: str) -> None:
    """Show text in ``language`` from here on; English when there is no catalogue for it."""
    if language == "en":
        use_catalogue(None)
        return
    use_catalogue(gettext.translation(_DOMAIN, _FOLDER, [language], fallback=True))
