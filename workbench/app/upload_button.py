"""A button that sends files to the server's upload route."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import param
from panel.custom import JSComponent

from workbench.app.i18n import _
from workbench.app.style import VARIABLES
from workbench.app.uploads import DATA, EXTERNAL, MODELS, ROUTE

_CSS = """
.wb-upload { font: inherit; font-size: 12.5px; height: 30px; padding: 0 12px; cursor: pointer;
  color: var(--wb-accent); background: transparent; border: 1px solid var(--wb-accent);
  border-radius: 4px; }
.wb-upload:disabled { opacity: 0.5; cursor: default; }
.wb-upload:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: 2px; }
.wb-upload-said { margin-left: 10px; color: var(--wb-muted); font-size: 12.5px; }
"""


class UploadButton(JSComponent):
    """Calls ``on_files`` with the names the files were kept under; ``go`` opens another page."""

    label = param.String(default="")
    lost = param.String(default="")
    accept = param.String(default=",".join((*MODELS, *DATA, *EXTERNAL)))
    address = param.String(default=ROUTE)
    go = param.String(default="")

    _esm: ClassVar[Path] = Path(__file__).with_name("upload_button.js")

    def __init__(self, on_files: Callable[[list[str]], None], **params: Any) -> None:
        super().__init__(
            label=_("Upload files …"),
            lost=_("the connection was lost"),
            stylesheets=[VARIABLES, _CSS],
            **params,
        )
        self._on_files = on_files

    def _handle_msg(self, msg: Any) -> None:
        names = msg.get("names") if isinstance(msg, dict) else None
        if isinstance(names, list):
            self._on_files([name for name in names if isinstance(name, str)])
