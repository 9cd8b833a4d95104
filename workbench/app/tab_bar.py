"""The row of the tabs' names; what they show stays mounted, so a tab comes back as it was left."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import panel as pn
import param
from panel.custom import JSComponent

from workbench.app.i18n import _
from workbench.app.style import VARIABLES

_CSS = """
.wb-tabs { display: flex; overflow-x: auto; scrollbar-width: none; }
.wb-tab { font: inherit; font-weight: 500; height: 44px; min-width: 60px; padding: 0 7px;
  flex: none; cursor: pointer; color: var(--wb-muted); background: transparent; border: 0;
  border-bottom: 2px solid transparent; }
.wb-tab:hover { color: var(--wb-text); }
.wb-tab[aria-selected="true"] { color: var(--wb-accent); border-bottom-color: var(--wb-accent); }
.wb-tab:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: -2px; }
"""


class TabBar(JSComponent):
    """``active`` is the index of the chosen one of ``names``."""

    names = param.List(default=[])
    active = param.Integer(default=0)
    label = param.String(default="")

    _esm: ClassVar[Path] = Path(__file__).with_name("tab_bar.js")

    def __init__(self, names: list[str], **params: Any) -> None:
        super().__init__(
            names=names,
            label=_("Parts of the workbench"),
            stylesheets=[VARIABLES, _CSS],
            sizing_mode="stretch_width",
            margin=0,
            styles={"flex": "1 1 552px"},
            **params,
        )


class TabPanel(pn.Column):
    """What a tab shows, called ``title`` by screen readers.

    A name instead of ``aria-labelledby``: the tab lies in another shadow root.
    """

    def __init__(self, title: str, **params: Any) -> None:
        super().__init__(**params)
        self._title = title

    def _get_properties(self, doc: Any) -> dict[str, Any]:
        attributes = {"role": "tabpanel", "aria-label": self._title}
        return {**super()._get_properties(doc), "html_attributes": attributes}
