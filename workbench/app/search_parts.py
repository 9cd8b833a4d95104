"""The Search tab: what to look for on top, and the part of the page that does it below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app.i18n import _
from workbench.app.view import View
from workbench.app.window import SEARCH_TAB, WindowState
from workbench.studio.session import Session


class SearchParts(View):
    """A switch between ``parts``, each built when it is first looked at.

    ``parts``: a view by its name in ``WindowState.search_part``; the page disposes of them.
    """

    def __init__(
        self, session: Session, window: WindowState, parts: Mapping[str, Callable[[], View]]
    ) -> None:
        super().__init__(session, window, SEARCH_TAB)
        self._build = parts
        titles = {
            "quantise": _("Quantisation"),
            "channels": _("Channels"),
            "decompose": _("Decomposition"),
        }
        self.switch = pmui.RadioButtonGroup(
            options={titles[name]: name for name in parts},
            value=window.search_part,
            size="small",
            width=380,
            margin=(8, 14, 6, 14),
        )
        self._places = {
            name: pn.Column(sizing_mode="stretch_width", margin=0, visible=False) for name in parts
        }
        self.watch(self.switch, self._chosen, "value")
        self.watch(window, self.update, "search_part")
        self.update()

    def _chosen(self) -> None:
        self.window.search_part = self.switch.value

    def update(self) -> None:
        part = self.window.search_part
        if self.switch.value != part:
            self.switch.value = part
        place = self._places[part]
        if not len(place):
            place.append(self._build[part]())
        for name, other in self._places.items():
            other.visible = name == part

    def __panel__(self) -> Any:
        return pn.Column(self.switch, *self._places.values(), sizing_mode="stretch_width", margin=0)
