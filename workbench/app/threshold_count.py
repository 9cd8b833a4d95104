"""The button beside the chart: how many layers are worse than the line, and skip them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import param
from panel.custom import JSComponent

from workbench.app.i18n import _
from workbench.app.style import VARIABLES

_CSS = """
.wb-count { font: inherit; font-size: 12.5px; height: 30px; padding: 0 12px; cursor: pointer;
  color: var(--wb-accent); background: transparent; border: 1px solid var(--wb-accent);
  border-radius: 4px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.wb-count:disabled { color: var(--wb-muted); border-color: var(--wb-grid); cursor: default; }
.wb-count:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: 2px; }
"""


class ThresholdCount(JSComponent):
    """``count`` layers are worse than ``threshold``; pressing it calls ``on_skip``."""

    threshold = param.Number(default=0.99)
    count = param.Integer(default=0)
    some = param.String(default="")
    none = param.String(default="")

    _esm: ClassVar[Path] = Path(__file__).with_name("threshold_count.js")

    def __init__(self, on_skip: Callable[[], None], **params: Any) -> None:
        super().__init__(
            some=_("{n} below cos {cos}: skip them"),
            none=_("none below cos {cos}"),
            stylesheets=[VARIABLES, _CSS],
            **params,
        )
        self._on_skip = on_skip

    def _handle_msg(self, msg: Any) -> None:
        if isinstance(msg, dict) and msg.get("type") == "skip":
            self._on_skip()
