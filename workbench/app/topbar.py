"""The bar across the top: what is open, four live numbers, undo, redo, Copy as Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import panel_material_ui as pmui

from workbench.app.html import ThemedHTML, escape
from workbench.app.i18n import _, language, said
from workbench.app.language import LanguageSwitch
from workbench.app.style import NARROW, aligned
from workbench.app.view import View
from workbench.app.window import WindowState
from workbench.charts import formats
from workbench.studio.session import Session
from workbench.studio.state import Summary

ARROW = "→"
# In a narrow window the figures have a line of their own.
_WRAP = f"""
:host {{ --wb-wrap: nowrap; }}
{NARROW} {{
  :host {{ --wb-wrap: wrap; }}
  :host > .wb-title {{ flex-basis: 110px !important; }}
  :host > .wb-numbers {{ order: 1; flex: 1 0 100% !important; }}
}}
"""


def _readout(label: str, before: str, now: str, delta: str, tone: str = "") -> str:
    if before == now:
        before = ""
    start = f'<span class="wb-from">{escape(before)} {ARROW} </span>' if before else ""
    change = f'<span class="wb-delta {tone}">{escape(delta)}</span>' if delta else ""
    return (
        f'<div class="wb-readout"><dt>{escape(label)}</dt>'
        f"<dd>{start}<span>{escape(now)}</span>{change}</dd></div>"
    )


def readouts(summary: Summary) -> str:
    """The four live numbers with their deltas, as a definition list."""
    name = summary.metric_name
    about = "≈ " if summary.metric_is_prediction else ""
    current = formats.metric(summary.metric_current, name)
    delta = formats.metric_delta(summary.metric_float, summary.metric_current, name)
    label = formats.metric_title(name) or _("metric")
    if summary.metric_is_prediction:
        label += " · " + _("predicted")
    parts = [
        _readout(
            label,
            formats.metric(summary.metric_float, name),
            about + current if current != formats.UNKNOWN else current,
            delta,
            "wb-bad" if delta.startswith(formats.MINUS) else "wb-good",
        ),
        _readout(
            _("size"),
            formats.size(summary.size_float),
            formats.size(summary.size_current),
            formats.ratio(summary.size_float, summary.size_current),
            "wb-muted",
        ),
        _readout(
            _("bit-operations"),
            formats.bit_operations(summary.bops_float),
            formats.bit_operations(summary.bops_current),
            formats.ratio(summary.bops_float, summary.bops_current),
            "wb-muted",
        ),
        _readout(_("quantised"), "", _of(summary), "", ""),
    ]
    return f'<dl class="wb-readouts wb-one-line" aria-live="polite">{"".join(parts)}</dl>'


def _of(summary: Summary) -> str:
    return _("{n} of {m}").format(n=summary.quantized, m=summary.eligible)


class TopBar(View):
    """``on_open`` and ``on_code`` open the project picker and the script dialog."""

    def __init__(
        self,
        session: Session,
        window: WindowState,
        *,
        on_open: Callable[[], None],
        on_code: Callable[[], None],
    ) -> None:
        super().__init__(session, window)
        self.title = ThemedHTML(
            css_classes=["wb-title"],
            sizing_mode=None,
            styles={"flex": "1 1 230px", "min-width": "110px", "max-width": "420px"},
        )
        self.numbers = ThemedHTML(
            css_classes=["wb-numbers"],
            sizing_mode=None,
            styles={
                "flex": "0 1 auto",
                "margin-right": "auto",
                "min-width": "0",
                "overflow": "auto hidden",
            },
        )
        self.open = self._icon("folder_open", _("Open a project"), lambda: on_open())
        self.undo = self._icon("undo", _("Undo"), lambda: self.act(session.undo))
        self.redo = self._icon("redo", _("Redo"), lambda: self.act(session.redo))
        self.code = pmui.Button(
            label=_("Copy as Python"),
            icon="content_copy",
            variant="outlined",
            size="small",
            margin=(0, 4),
            sx={"color": "inherit", "borderColor": "currentColor", "opacity": 0.85},
        )
        self.press(self.code, lambda: on_code())
        self.language = LanguageSwitch(language(), margin=(0, 4), align="center")
        self.watch(session, self.update_numbers, "summary")
        self.watch(session, self.update_title, "summary", "layers")
        self.watch(session, self.update_undo, "can_undo", "can_redo")
        self.update_title()
        self.update_numbers()
        self.update_undo()

    def _icon(self, icon: str, label: str, action: Callable[[], Any]) -> Any:
        button = pmui.IconButton(
            icon=icon,
            description=label,
            description_delay=1000,
            # A tooltip must not catch the click that is meant for its neighbour.
            stylesheets=[
                ".MuiTooltip-popper, .MuiTooltip-tooltip { pointer-events: none !important; }"
                ".MuiTooltip-tooltip { white-space: nowrap; }"
            ],
            color="default",
            size="small",
            margin=(0, 2),
        )
        self.press(button, lambda: action())
        return button

    def update_title(self) -> None:
        summary = self.session.summary
        line = " · ".join(part for part in (summary.model, said(summary.data)) if part)
        self.title.fill(
            f'<h1 class="wb-name" title="{escape(str(self.session.project.folder))}">'
            f"{escape(self.session.project.name)}</h1>"
            f'<div class="wb-line" title="{escape(line)}">{escape(line or _("opening …"))}</div>'
        )

    def update_numbers(self) -> None:
        self.numbers.fill(readouts(self.session.summary))

    def update_undo(self) -> None:
        self.undo.disabled = not self.session.can_undo
        self.redo.disabled = not self.session.can_redo

    def __panel__(self) -> Any:
        return aligned(
            self.open,
            self.title,
            self.numbers,
            self.undo,
            self.redo,
            self.language,
            self.code,
            sizing_mode="stretch_width",
            align="center",
            styles={"gap": "0", "flex-wrap": "var(--wb-wrap)"},
            css=_WRAP,
        )
