"""Tensor decomposition in a notebook: what would become of each layer, and the new project."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from workbench.charts.text import _
from workbench.studio import decomposition_words as words
from workbench.widgets.job_bar import JobBar
from workbench.widgets.netron_view import NetronView
from workbench.widgets.shrunk_result import figures_html, shrunk_html
from workbench.widgets.view import SessionView, bar, button, table_html

if TYPE_CHECKING:
    from workbench.studio.pruning_state import DecompositionState
    from workbench.studio.session import Session


class DecompositionPanel(SessionView):
    """A dry run says what would become of each convolution; Decompose makes a project of it.

    More settings by code: ``session.decompose(…)``; ``session.decomposition`` and
    ``session.shrunk`` have what came of it. Both graphs are shown when there are two.
    """

    def __init__(self, session: Session, dark: bool | None = None) -> None:
        self.session = session
        self._dark = dark
        self.energy = w.BoundedFloatText(
            value=0.9, min=0.01, max=1.0, step=0.05, disabled=True,
            tooltip=_("energy to keep"),
        )  # fmt: skip
        self.energy.layout.width = "80px"
        self.rule = w.Dropdown(
            options=[
                (_("estimated, in a band"), "compat"),
                (_("estimated, for any scale"), "scale_free"),
                (_("by energy"), "energy"),
            ],
            description=_("rank"),
        )
        self.rule.layout.width = "290px"
        self.try_it = button(_("Dry run"), lambda: self._decompose(dry_run=True))
        self.start = button(_("Decompose"), lambda: self._decompose(dry_run=False), style="primary")
        self.job = JobBar(session, kinds=("decompose",))
        self.note = w.HTML()
        self.totals = w.HTML()
        self.table = w.HTML(layout=w.Layout(max_height="300px", overflow="auto"))
        self.result = w.HTML()
        self.graphs = w.HBox()
        self._shown: tuple[str, str] | None = None
        super().__init__(
            session,
            [
                bar(self.rule, self.energy, self.try_it, self.start),
                self.job, self.note, self.totals, self.table, self.result, self.graphs,
            ],
        )  # fmt: skip
        self.rule.observe(lambda _change: self._chose_rule(), "value")
        self.watch(self.refresh, "decomposition")
        self.watch(self._running, "job", "layers")
        self.watch(self._finished, "shrunk")
        self.refresh()
        self._running()
        self._finished()

    def _chose_rule(self) -> None:
        self.energy.disabled = self.rule.value != "energy"

    def _decompose(self, *, dry_run: bool) -> None:
        rule, energy = self.rule.value, self.energy.value
        self.act(
            lambda: self.session.decompose(
                dry_run=dry_run, rank_rule=rule, energy=energy, wait=False
            )
        )

    def refresh(self) -> None:
        found: DecompositionState | None = self.session.decomposition
        line = words.invitation() if found is None else words.outcome(found)
        self.note.value = f'<div class="wb-note">{html.escape(line)}</div>'
        self.totals.value = "" if found is None else figures_html(words.figures(found))
        rows: list[tuple[Any, ...]] = [] if found is None else [*map(words.row, found.layers)]
        self.table.value = table_html(words.heads(), rows)

    def _running(self) -> None:
        job = self.session.job
        active = job is not None and job.active
        self.try_it.disabled = self.start.disabled = active or not len(self.session.layers)

    def _finished(self) -> None:
        """The new project, and the graphs of both models as the app's Export tab shows them."""
        shrunk = self.session.shrunk
        self.result.value = shrunk_html(
            shrunk, "decompose", trainable=self.session.project.source.trainable
        )
        files = shrunk.onnx if shrunk is not None and shrunk.kind == "decompose" else None
        if files == self._shown:
            return
        self._shown = files
        for old in self.graphs.children:
            old.dispose()
        made = [] if files is None or not all(files) else files
        self.graphs.children = [NetronView(file, dark=self._dark, height="420px") for file in made]

    def release(self) -> None:
        for graph in self.graphs.children:
            graph.dispose()
        super().release()
