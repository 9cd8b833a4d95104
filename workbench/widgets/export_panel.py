"""Export: what was written, how it was checked, and the script that does it again."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING

import ipywidgets as w

from workbench.charts import formats
from workbench.charts.text import _
from workbench.charts.words import file_title, parity_text
from workbench.widgets.job_bar import JobBar
from workbench.widgets.view import SessionView, button

if TYPE_CHECKING:
    from workbench.studio.session import Session
    from workbench.studio.state import ExportResult


class ExportPanel(SessionView):
    """Writes the quantised model and shows sizes, metric, speed and parity of each file."""

    def __init__(self, session: Session) -> None:
        self.prefix = w.Text(
            placeholder=_("folder/name (empty: in the project)"), description=_("save as")
        )
        self.prefix.layout.width = "380px"
        self.export = button(_("Export"), self._export, style="primary")
        self.bar = JobBar(session, kinds=("export", "evaluate"))
        self.result = w.HTML()
        self.script = w.HTML()
        self._script = w.Accordion([self.script], titles=[_("Python script of this session")])
        super().__init__(
            session, [w.HBox([self.prefix, self.export]), self.bar, self.result, self._script]
        )
        self._script.observe(lambda _: self._show_script(), "selected_index")
        self.watch(self.refresh, "exports")
        self.watch(self._show_script, "revision", "exports")
        self.watch(self._running, "job")
        self._running()
        self.refresh()

    def _export(self) -> None:
        prefix = self.prefix.value.strip() or None
        self.act(lambda: self.session.export(prefix, wait=False))

    def _running(self) -> None:
        job = self.session.job
        self.export.disabled = job is not None and job.active

    def _show_script(self) -> None:
        # Writing the script is work; it is only done while somebody looks at it.
        if self._script.selected_index == 0:
            text = html.escape(self.session.script())
            self.script.value = f'<pre class="wb-script">{text}</pre>'

    def refresh(self) -> None:
        result = self.session.exports
        if result is None:
            self.result.value = (
                f'<span class="wb-note">{html.escape(_("Nothing is exported yet."))}</span>'
            )
        else:
            self.result.value = export_html(result, self.session.summary.metric_name)


def export_html(result: ExportResult, metric_name: str) -> str:
    """Files and parity lines of one export as an HTML table."""
    lines = []
    for file in result.files:
        speed = formats.UNKNOWN
        if file.latency_ms is not None:
            speed = f"{file.latency_ms:.2f} ms"
            if file.latency_spread_ms is not None:
                speed += f" ± {file.latency_spread_ms:.2f}"
        lines.append(
            f"<tr><td>{html.escape(file_title(file.kind))}</td>"
            f'<td title="{html.escape(file.path)}">{html.escape(Path(file.path).name)}</td>'
            f"<td>{formats.size(file.bytes)}</td><td>{file.ratio:.2f}×</td>"
            f"<td>{formats.metric(file.metric, metric_name)}</td><td>{speed}</td></tr>"
        )
    parity = "".join(
        f'<div class="{"wb-good" if line.ok else "wb-bad"}">{"✓" if line.ok else "✗"} '
        f"{html.escape(parity_text(line.text))}</div>"
        for line in result.parity
    )
    titles = (
        "", _("file"), _("size"), _("smaller"), formats.metric_title(metric_name) or _("metric"),
        _("latency"),
    )  # fmt: skip
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    return f'<table class="wb-table"><tr>{head}</tr>' + "".join(lines) + f"</table>{parity}"
