"""Hold a layer quantised or float, whatever the search proposes."""

from __future__ import annotations

from typing import Any

import panel_material_ui as pmui

from workbench.app.html import ThemedHTML, escape
from workbench.app.i18n import _
from workbench.app.style import aligned
from workbench.app.view import View
from workbench.app.window import SEARCH_TAB, WindowState
from workbench.studio.session import Session

FREE, QUANTISED, FLOAT = "free", "quantised", "float"
VALUES: dict[str, bool | None] = {FREE: None, QUANTISED: True, FLOAT: False}
NEXT: dict[bool | None, bool | None] = {None: False, False: True, True: None}


class PinControl(View):
    """A layer and what it is held at; ``turn`` goes from free to float to quantised to free."""

    def __init__(self, session: Session, window: WindowState) -> None:
        super().__init__(session, window, SEARCH_TAB)
        self.layer = pmui.Select(
            label=_("pin a layer"), options=[], width=230, size="small", margin=0
        )
        self.hold = pmui.RadioButtonGroup(
            options={_("free"): FREE, _("float"): FLOAT, _("quantised"): QUANTISED},
            value=FREE, size="small", margin=0, align="center",
        )  # fmt: skip
        self.clear = pmui.Button(
            label=_("Unpin all"), size="small", variant="text", margin=0, visible=False
        )
        self.press(self.clear, lambda: self.act(lambda: session.pin(list(session.pins), None)))
        self.text = ThemedHTML(align="center")
        self.watch(self.layer, self.follow, "value")
        self.watch(self.hold, self._held, "value")
        self.watch(session, self.update, "layers")
        self.watch(session, self.follow, "pins")
        self.update()

    def turn(self, name: str) -> None:
        """The layer's next state, as a click on it asks for."""
        self.act(lambda: self.session.pin(name, NEXT[self.session.pins.get(name)]))

    def update(self) -> None:
        table = self.session.layers
        names = table[table["eligible"]]["name"].tolist() if len(table) else []
        if names != self.layer.options:
            self.layer.param.update(options=names, value=names[0] if names else None)
        self.follow()

    def follow(self) -> None:
        pins = self.session.pins
        pin = pins.get(self.layer.value)
        held = next(word for word, value in VALUES.items() if value is pin)
        if self.hold.value != held:
            self.hold.value = held
        words = {True: _("quantised"), False: _("float")}
        shown = [f"{name} ({words[on]})" for name, on in pins.items()]
        text = ", ".join(shown[:4]) + (" …" if len(shown) > 4 else "")
        self.text.fill(
            f'<span class="wb-muted">{escape(_("pinned"))}: {escape(text)}</span>'
            if shown
            else f'<span class="wb-muted">'
            f"{escape(_('A click on a layer above pins it: float, quantised, free again.'))}</span>"
        )
        self.clear.visible = bool(shown)

    def _held(self) -> None:
        name = self.layer.value
        wanted = VALUES[self.hold.value]
        if name and self.session.pins.get(name) is not wanted:
            self.act(lambda: self.session.pin(name, wanted))

    def __panel__(self) -> Any:
        return aligned(
            self.layer,
            self.hold,
            self.clear,
            self.text,
            sizing_mode="stretch_width",
            margin=(8, 0, 2, 0),
        )
