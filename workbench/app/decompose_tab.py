"""Large convolutions as pairs of smaller ones: what would become of each, and the new project."""

from __future__ import annotations

import math
from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app.decompose_settings import DecomposeSettings
from workbench.app.html import ThemedHTML, escape, notice
from workbench.app.i18n import _, ngettext, said
from workbench.app.job_notice import JobNotice
from workbench.app.shrunk_result import made_from, shrunk_line, shrunk_result
from workbench.app.view import View
from workbench.app.window import SEARCH_TAB, WindowState
from workbench.charts import formats
from workbench.studio.pruning_state import DecomposedLayer, DecompositionState
from workbench.studio.session import Session

KINDS = ("decompose",)
HEIGHT = 400
ALIGNED = {"align-items": "center", "gap": "8px"}


class DecomposeTab(View):
    """A dry run fills the table; Decompose makes a project with the settings as they are."""

    def __init__(self, session: Session, window: WindowState) -> None:
        super().__init__(session, window, SEARCH_TAB)
        self.settings = window.settings(DecomposeSettings)
        self.state = JobNotice(session, window, ("open", *KINDS))
        self.parts = [self.state]
        self.origin = ThemedHTML(margin=(8, 0, 0, 0), visible=False)
        self.try_it = self._button(
            _("Dry run"), "table_chart", lambda: self._decompose(dry_run=True)
        )
        self.start = self._button(
            _("Decompose"), "call_split", lambda: self._decompose(dry_run=False), "contained"
        )
        self.stop = self._button(_("Stop"), "stop", session.cancel)
        self.more = pn.Column(visible=False, sizing_mode="stretch_width", margin=0)
        self.fold = self._button(_("More settings"), "tune", self._fold, variant="text")
        self.text = ThemedHTML(margin=(4, 0))
        self.totals = ThemedHTML(margin=(4, 0))
        self.table = ThemedHTML(styles={"overflow": "auto", "max-height": f"{HEIGHT}px"})
        self.done = ThemedHTML(margin=(4, 0))
        self.result = ThemedHTML(margin=(10, 0, 0, 0))
        self.watch(session, self.update_table, "decomposition")
        self.watch(session, self.update_result, "shrunk", "origin", "summary")
        self.watch(session, self.update_running, "job", "layers", "decomposition")
        self.update_table()
        self.update_result()
        self.update_running()

    def _button(self, label: str, icon: str, action: Any, variant: str = "outlined") -> Any:
        button = pmui.Button(label=label, icon=icon, size="small", variant=variant, margin=0)
        self.press(button, lambda: self.act(lambda: action()))
        return button

    def _decompose(self, *, dry_run: bool) -> None:
        self.session.decompose(dry_run=dry_run, **self.settings.arguments(), wait=False)

    def _fold(self) -> None:
        if not len(self.more):
            self.more.append(self.settings.panel())
        self.more.visible = not self.more.visible
        self.fold.label = _("Fewer settings") if self.more.visible else _("More settings")

    def update_table(self) -> None:
        found: DecompositionState | None = self.session.decomposition
        self.totals.fill(totals_html(found))
        self.table.fill(table_html(found))

    def update_running(self) -> None:
        """What may be pressed, and one sentence; several times a second while a job runs."""
        job = self.session.job
        active = job is not None and job.active
        running = active and job is not None and job.kind in KINDS
        self.try_it.disabled = self.start.disabled = active or not len(self.session.layers)
        self.stop.disabled = not running
        text = ""
        if running and job is not None:
            text = f'<div role="status">{escape(said(job.message) or _("Working"))} …</div>'
        elif self.session.decomposition is None:
            text = notice(
                _(
                    "A wide convolution is replaced by a vertical and a horizontal one with fewer "
                    "channels between them: about a third of its weights. Kernels of 3×3 need 64 "
                    "channels on both sides. The dry run says what would become of each layer."
                )
            )
        self.text.fill(text)

    def update_result(self) -> None:
        origin = made_from(self.session.origin)
        self.origin.fill(origin)
        self.origin.visible = bool(origin)
        self.result.fill(shrunk_result(self.session.shrunk, "decompose"))
        self.done.fill(shrunk_line(self.session.shrunk, "decompose"))

    def __panel__(self) -> Any:
        return pn.Column(
            self.state,
            self.origin,
            pn.Row(
                self.try_it, self.start, self.stop, self.fold,
                sizing_mode="stretch_width", margin=(6, 0, 0, 0), styles=ALIGNED,
            ),
            self.more,
            self.text,
            self.done,
            self.totals,
            self.table,
            self.result,
            sizing_mode="stretch_width",
            margin=(0, 14, 10, 14),
        )  # fmt: skip


def totals_html(found: DecompositionState | None) -> str:
    """How many layers would be decomposed, and the whole model before and after."""
    if found is None:
        return ""
    count = len(found.layers)
    if not found.changed:
        return notice(
            ngettext(
                "The one convolution would stay as it is; the table says why.",
                "None of {count} convolutions would be decomposed; the table says why.",
                count,
            ).format(count=count)
            if count
            else _("The model has no Conv2d.")
        )
    words = ngettext(
        "{changed} of {count} convolution would be decomposed.",
        "{changed} of {count} convolutions would be decomposed.",
        count,
    ).format(changed=found.changed, count=count)
    pairs = (
        (_("multiply-accumulates"), found.macs, found.macs_after),
        (_("parameters"), found.parameters, found.parameters_after),
    )
    cells = "".join(
        f'<div class="wb-readout"><dt>{escape(title)}</dt>'
        f'<dd><span class="wb-from">{formats.count(before)} → </span>'
        f"<span>{formats.count(after)}</span>"
        f'<span class="wb-delta wb-muted">{formats.ratio(before, after)}</span></dd></div>'
        for title, before, after in pairs
    )
    return (
        f'<div class="wb-muted" role="status" style="margin-bottom:4px">{escape(words)}</div>'
        f'<dl class="wb-readouts">{cells}</dl>'
    )


def table_html(found: DecompositionState | None) -> str:
    """A row a convolution: kernel, rank, cost before and after, error, or why it stays."""
    if found is None or not found.layers:
        return ""
    titles = (
        (_("layer"), ""), (_("kernel"), ""), (_("rank"), "wb-number"), ("MAC", "wb-number"),
        (_("parameters"), "wb-number"), (_("error"), "wb-number"), (_("stays, because"), ""),
    )  # fmt: skip
    head = "".join(f'<th class="{css}">{escape(title)}</th>' for title, css in titles)
    rows = "".join(map(_row, found.layers))
    return f'<table class="wb"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _row(layer: DecomposedLayer) -> str:
    known = math.isfinite(layer.rank)
    numbers = (
        f"{layer.rank:.0f}" if known else formats.UNKNOWN,
        _pair(layer.macs, layer.macs_after),
        _pair(layer.parameters, layer.parameters_after),
        f"{100 * layer.error:.1f} %" if math.isfinite(layer.error) else formats.UNKNOWN,
    )
    cells = "".join(f'<td class="wb-number">{text}</td>' for text in numbers)
    css = ' class="wb-muted"' if layer.skipped else ""
    return (
        f"<tr{css}><td>{escape(layer.name)}</td><td>{escape(layer.kernel)}</td>{cells}"
        f"<td>{escape(said(layer.skipped))}</td></tr>"
    )


def _pair(before: int, after: int) -> str:
    if before == after:
        return formats.count(before)
    return f"{formats.count(before)} → {formats.count(after)}"
