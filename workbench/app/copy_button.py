"""A button that puts a text on the browser's clipboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import param
from panel.custom import JSComponent

from workbench.app.i18n import _
from workbench.app.style import VARIABLES

_CSS = """
.wb-copy { font: inherit; font-size: 12px; font-weight: 500; height: 32px;
  padding: 0 12px; cursor: pointer; color: var(--wb-accent); background: transparent;
  border: 1px solid var(--wb-accent);
  border-radius: 4px; }
.wb-copy:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: 2px; }
"""


class CopyButton(JSComponent):
    """Copies ``text``; says for a moment that it did."""

    text = param.String(default="")
    label = param.String(default="")
    done = param.String(default="")
    failed = param.String(default="")

    _esm: ClassVar[Path] = Path(__file__).with_name("copy_button.js")

    def __init__(self, **params: Any) -> None:
        super().__init__(
            label=_("Copy"),
            done="✓ " + _("Copied"),
            failed="✕ " + _("Select the text and copy it by hand"),
            stylesheets=[VARIABLES, _CSS],
            **params,
        )
