"""Large convolutions as pairs of smaller ones: what would become of each, and the new project."""

from __future__ import annotations

from typing import Any

from workbench.app.decompose_settings import DecomposeSettings
from workbench.app.html import ThemedHTML, escape, notice
from workbench.app.i18n import _
from workbench.app.shrink_tab import ShrinkTab
from workbench.app.shrunk_result import figures_html
from workbench.app.window import WindowState
from workbench.studio import decomposition_words as words
from workbench.studio.pruning_state import DecomposedLayer, DecompositionState
from workbench.studio.session import Session


class DecomposeTab(ShrinkTab):
    """A dry run fills the table; Decompose makes a project with the settings as they are."""

    kind = "decompose"
    jobs = ("decompose",)

    def __init__(self, session: Session, window: WindowState) -> None:
        super().__init__(session, window, window.settings(DecomposeSettings), words.invitation())
        self.try_it = self._button(
            _("Dry run"), "table_chart", lambda: self._decompose(dry_run=True)
        )
        self.start = self._button(
            _("Decompose"), "call_split", lambda: self._decompose(dry_run=False), "contained"
        )
        self.totals = ThemedHTML(margin=(4, 0))
        self.table = ThemedHTML(styles={"overflow": "auto hidden"})
        self.watch(session, self.update_table, "decomposition")
        self.watch(session, self.update_running, "job", "layers", "decomposition")
        self.update_table()
        self.update_running()

    def _decompose(self, *, dry_run: bool) -> None:
        self.session.decompose(dry_run=dry_run, **self.settings.arguments(), wait=False)

    def update_table(self) -> None:
        found: DecompositionState | None = self.session.decomposition
        self.totals.fill(totals_html(found))
        self.table.fill(table_html(found))

    def update_running(self) -> None:
        self.try_it.disabled = self.start.disabled = self.busy or not len(self.session.layers)
        self.update_text(known=self.session.decomposition is not None)

    def __panel__(self) -> Any:
        return self.column([self.try_it, self.start], self.totals, self.table)


def totals_html(found: DecompositionState | None) -> str:
    """How many layers would be decomposed, and the whole model before and after."""
    if found is None:
        return ""
    if not found.changed:
        return notice(words.outcome(found))
    return (
        '<div class="wb-muted" role="status" style="margin-bottom:4px">'
        f"{escape(words.outcome(found))}</div>{figures_html(words.figures(found))}"
    )


def table_html(found: DecompositionState | None) -> str:
    """A row a convolution; empty before the first dry run."""
    if found is None or not found.layers:
        return ""
    head = _cells("th", words.heads())
    rows = "".join(map(_row, found.layers))
    return f'<table class="wb"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _row(layer: DecomposedLayer) -> str:
    css = ' class="wb-muted"' if layer.skipped else ""
    return f"<tr{css}>{_cells('td', words.row(layer))}</tr>"


def _cells(tag: str, texts: tuple[str, ...]) -> str:
    css = ["wb-number" if place in words.NUMBERS else "" for place in range(len(texts))]
    return "".join(
        f'<{tag} class="{one}">{escape(text)}</{tag}>' for one, text in zip(css, texts, strict=True)
    )
