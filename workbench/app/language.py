"""The switch between languages: the choice stays in a cookie, and the page loads again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import param
from panel.custom import JSComponent

from workbench.app.i18n import COOKIE, _, languages
from workbench.app.style import VARIABLES

NAMES = {"en": "English", "zh": "中文"}
TAGS = {"zh": "zh-CN"}
_CSS = """
.wb-language { font: inherit; font-size: 12.5px; height: 30px; padding: 0 2px; cursor: pointer;
  color: var(--wb-text); background: transparent; border: 1px solid transparent;
  border-radius: 4px; opacity: 0.85; }
.wb-language:hover { border-color: var(--wb-grid); }
.wb-language option { color: var(--wb-text); background: var(--panel-background-color, Canvas); }
.wb-language:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: 1px; }
"""


class LanguageSwitch(JSComponent):
    """A menu of languages; choosing one loads the page again."""

    language = param.String(default="en")
    languages = param.List(default=[])
    label = param.String(default="")
    cookie = param.String(default=COOKIE)

    _esm: ClassVar[Path] = Path(__file__).with_name("language.js")

    def __init__(self, language: str, **params: Any) -> None:
        super().__init__(
            language=language,
            languages=[[code, NAMES.get(code, code), TAGS.get(code, code)] for code in languages()],
            label=_("Language"),
            stylesheets=[VARIABLES, _CSS],
            **params,
        )
