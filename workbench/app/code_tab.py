"""The script that does all of this again, and the configuration file, to read, copy and keep."""

from __future__ import annotations

import io
from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app.copy_button import CopyButton
from workbench.app.html import ThemedHTML, escape
from workbench.app.i18n import _, error_text
from workbench.app.style import BESIDE, LEGIBLE, aligned
from workbench.app.view import View
from workbench.app.window import CODE_TAB, WindowState
from workbench.engine.errors import WorkbenchError
from workbench.studio.session import Session


def listing(text: str, height: str) -> str:
    """Code in a frame, which scrolls by itself where it is longer or wider."""
    return (
        f'<pre class="wb" tabindex="0" style="max-height:{height}">'
        f"<code>{escape(text)}</code></pre>"
    )


class ScriptView(View):
    """The script with copy and download; ``refresh`` asks the session for it anew.

    ``height`` of the text at most, as CSS has it.
    """

    def __init__(self, session: Session, window: WindowState, *, height: str) -> None:
        super().__init__(session, window)
        self.script = ""
        self.height = height
        self.text = ThemedHTML()
        self.copy = CopyButton(margin=0)
        self.download = pmui.FileDownload(
            callback=lambda: io.StringIO(self.script),
            filename="log.py",
            label=_("Download log.py"),
            variant="outlined",
            size="small",
            margin=0,
        )

    def refresh(self) -> None:
        try:
            self.script = self.session.script()
        except WorkbenchError as error:
            self.script = ""
            self.text.fill(f'<p class="wb-empty">{escape(error_text(error))}</p>')
            return
        self.copy.text = self.script
        self.text.fill(listing(self.script, self.height))

    def __panel__(self) -> Any:
        return pn.Column(
            aligned(
                self.copy,
                self.download,
                margin=(4, 0, 8, 0),
            ),
            self.text,
            sizing_mode="stretch_width",
            margin=0,
        )


class CodeTab(View):
    """Script on the left, ``ptq.json`` on the right, both as they are now."""

    def __init__(self, session: Session, window: WindowState) -> None:
        super().__init__(session, window)
        self.view = ScriptView(session, window, height="calc(100vh - 190px)")
        self.parts = [self.view]
        self.json = ""
        self.config = ThemedHTML()
        self.download = pmui.FileDownload(
            callback=lambda: io.StringIO(self.json),
            filename="ptq.json",
            label=_("Download ptq.json"),
            variant="outlined",
            size="small",
            margin=0,
        )
        self.settings = pn.Column(
            aligned(self.download, margin=(4, 0, 8, 0)),
            self.config,
            sizing_mode="stretch_width",
            margin=0,
            styles={**LEGIBLE, "flex": "1 1 340px"},
        )
        self.watch(session, self.update, "layers", "trials", "exports", "revision")
        self.watch(window, self.update, "tab")
        self.update()

    def update(self) -> None:
        """Written only while it is looked at: every edit would cost for nobody otherwise."""
        known = len(self.session.layers) > 0 or self.session.without_graph
        if self.window.tab != CODE_TAB or not known:
            return
        self.view.refresh()
        self.settings.visible = len(self.session.layers) > 0
        if not self.settings.visible:
            return
        try:
            self.json = self.session.config_json()
        except WorkbenchError as error:
            self.json = ""
            self.config.fill(f'<p class="wb-empty">{escape(error_text(error))}</p>')
            return
        self.config.fill(listing(self.json, self.view.height))

    def __panel__(self) -> Any:
        return pn.Row(
            pn.Column(
                self.view,
                sizing_mode="stretch_width",
                margin=0,
                styles={**LEGIBLE, "flex": "2 1 400px"},
            ),
            self.settings,
            sizing_mode="stretch_width",
            margin=(6, 14),
            styles={**BESIDE, "gap": "16px"},
        )
