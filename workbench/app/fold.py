"""Settings that most people never need: a button shows them, and they stay so over a reload."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app.i18n import _
from workbench.app.window import WindowState


class Fold:
    """``button`` shows and hides ``body``, which ``build`` makes when it is first wanted.

    The window keeps under ``name`` whether it is open.
    """

    def __init__(self, window: WindowState, name: str, build: Callable[[], Any]) -> None:
        self._window, self._name, self._build = window, name, build
        self.body = pn.Column(visible=False, sizing_mode="stretch_width", margin=0)
        self.button = pmui.Button(icon="tune", variant="text", size="small", margin=0)
        self.button.on_click(lambda _event: self.show(not self.body.visible))
        self.show(name in window.unfolded)

    def show(self, wanted: bool) -> None:
        """Unfold the settings, or fold them up."""
        if wanted and not len(self.body):
            self.body.append(self._build())
        self.body.visible = wanted
        self.button.label = _("Fewer settings") if wanted else _("More settings")
        others = [name for name in self._window.unfolded if name != self._name]
        self._window.unfolded = (*others, self._name) if wanted else tuple(others)
