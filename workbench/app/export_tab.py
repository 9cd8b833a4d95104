"""Names for the files' graph, what was written and what it measures, and the graphs."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app.downloads import download_url
from workbench.app.graph_view import GraphView
from workbench.app.html import ThemedHTML, escape, notice
from workbench.app.i18n import _
from workbench.app.job_notice import JobNotice
from workbench.app.rows import any_eligible
from workbench.app.style import aligned
from workbench.app.view import View
from workbench.app.window import EXPORT_TAB, WindowState
from workbench.charts import formats
from workbench.charts.words import file_title, job_sentence, parity_text
from workbench.engine.export.float_onnx import BATCH, OPSET
from workbench.studio.report import report_html, report_path
from workbench.studio.session import Session
from workbench.studio.state import ExportedFile, ExportResult, ParityLine


def _row(
    file: ExportedFile, metric_name: str, float_latency: float | None, *, there: bool = True
) -> str:
    path = Path(file.path)
    latency, speed = formats.UNKNOWN, ""
    if file.latency_ms is not None:
        latency = f"{file.latency_ms:.2f} ms"
        if file.latency_spread_ms is not None:
            latency += f" ± {file.latency_spread_ms:.2f}"
        if float_latency and file.kind != "float" and file.latency_ms > 0:
            speed = f"{float_latency / file.latency_ms:.2f}×"
    metric = (
        formats.metric(file.metric, metric_name)
        if file.metric is not None
        else _("integers: not run by ONNX Runtime")
    )
    link = download_url(path) if there else ""
    name = escape(path.name)
    shown = f'<a href="{escape(link)}" download="{name}">{name}</a>' if link else name
    return (
        f'<tr><td>{shown}<div class="wb-muted">{escape(file_title(file.kind))}</div></td>'
        f"<td class='wb-number'>{formats.size(file.bytes)}</td>"
        f"<td class='wb-number'>{file.ratio:.1f}×</td>"
        f"<td class='wb-number'>{escape(metric)}</td>"
        f"<td class='wb-number'>{escape(latency)}</td>"
        f"<td class='wb-number'>{escape(speed)}</td></tr>"
    )


def _parity(line: ParityLine) -> str:
    mark, tone = ("✓", "wb-good") if line.ok else ("✕", "wb-bad")
    text = parity_text(line.text)
    if line.first_layer and not line.ok:
        text += " · " + _("first at {layer}").format(layer=line.first_layer)
    return f'<div class="{tone}">{mark} {escape(text)}</div>'


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")] if text.strip() else []


def export_result(result: ExportResult | None, metric_name: str, gone: Collection[str] = ()) -> str:
    """Files with bytes, ratio, metric and latency against float; then the parity lines.

    Paths in ``gone`` hold another export by now, so that they are not offered for download.
    """
    if result is None or not result.files:
        text = _(
            "Nothing exported yet. Export writes three ONNX files (fake_quant, deploy and qdq), "
            "runs them and checks that they agree."
        )
        return notice(text)
    base = next((file.latency_ms for file in result.files if file.kind == "float"), None)
    head = "".join(
        f"<th class='{css}'>{escape(title)}</th>"
        for title, css in (
            (_("file"), ""),
            (_("size"), "wb-number"),
            (_("smaller"), "wb-number"),
            (
                _("{metric} in ONNX Runtime").format(metric=formats.metric_title(metric_name)),
                "wb-number",
            ),
            (_("latency"), "wb-number"),
            (_("faster than float"), "wb-number"),
        )
    )
    rows = "".join(
        _row(file, metric_name, base, there=file.path not in gone) for file in result.files
    )
    parity = "".join(_parity(line) for line in result.parity)
    methods = {
        "qat": _("Files of the network trained with QAT"),
        "distill": _("Files of the distilled network"),
        "finetune": _("Files of the fine-tuned network"),
        "sparse": _("Files of the network with 2:4 sparsity"),
        "compressed": _("Files of the network that was pruned and quantised in training"),
    }
    title = methods.get(result.method, "")
    return (
        (f'<h2 class="wb">{escape(title)}</h2>' if title else "")
        + f'<table class="wb"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        f'<div style="margin-top:10px">{parity}</div>'
    )


class ExportTab(View):
    """Button, result, graphs side by side."""

    def __init__(self, session: Session, window: WindowState) -> None:
        super().__init__(session, window, EXPORT_TAB)
        self.state = JobNotice(session, window, ("open", "export"))
        self.graphs = GraphView(session, window)
        self.parts = [self.state, self.graphs]
        self.button = pmui.Button(label=_("Export"), icon="play_arrow", size="small", margin=0)
        self.press(self.button, lambda: self.act(lambda: session.export(wait=False)))
        self.report = pmui.FileDownload(
            callback=lambda: io.StringIO(report_html(session)),
            filename=report_path(session, None).name,
            label=_("Report (HTML)"),
            variant="outlined",
            size="small",
            margin=0,
        )
        self.inputs = self._name_field(_("input names"), 260)
        self.outputs = self._name_field(_("output names"), 260)
        self.batch = self._name_field(_("name of the batch dimension"), 230)
        self.batch.placeholder = _("{name}, if empty").format(name=BATCH)
        opset = _("for the next export; opset {n}").format(n=OPSET)
        self.hint = ThemedHTML(
            f'<span class="wb-muted">{escape(opset)}</span>', styles={"min-width": "max-content"}
        )
        self.progress = ThemedHTML()
        self.result = ThemedHTML(
            margin=(8, 0), styles={"min-width": "0", "overflow": "auto hidden"}
        )
        self.watch(session, self.update, "exports", "job", "layers", "summary")
        self.watch(session, self._show_names, "graph_names", "layers")
        for field in (self.inputs, self.outputs, self.batch):
            self.watch(field, self._name_graph, "value")
        self._show_names()
        self.update()

    def _name_field(self, label: str, width: int) -> Any:
        return pmui.TextInput(label=label, width=width, size="small", margin=0)

    def _show_names(self) -> None:
        names = self.session.graph_names
        self.inputs.param.update(
            value=", ".join(names.inputs), placeholder=", ".join(self.session.input_names)
        )
        self.outputs.param.update(value=", ".join(names.outputs), placeholder=_("as in the model"))
        self.batch.value = names.batch

    def _name_graph(self) -> None:
        wanted = (_listed(self.inputs.value), _listed(self.outputs.value), self.batch.value.strip())
        names = self.session.graph_names
        if wanted == (list(names.inputs), list(names.outputs), names.batch):
            return
        if self.act(lambda: self.session.name_graph(*wanted)):
            self.window.notice = ""

    def update(self) -> None:
        job = self.session.job
        active = job is not None and job.active
        self.button.disabled = active or not any_eligible(self.session.layers)
        self.report.disabled = not len(self.session.layers)
        text = ""
        if job is not None and active and job.kind == "export":
            text = f'<span role="status">{escape(job_sentence(job.kind, job.message))} …</span>'
        self.progress.fill(text)
        self.result.fill(export_result(self.session.exports, self.session.summary.metric_name))

    def __panel__(self) -> Any:
        return pn.Column(
            self.state,
            aligned(
                self.button,
                self.report,
                self.progress,
                margin=(10, 0, 6, 0),
            ),
            aligned(
                self.inputs,
                self.outputs,
                self.batch,
                self.hint,
                margin=0,
            ),
            self.result,
            self.graphs,
            sizing_mode="stretch_width",
            margin=(0, 14, 10, 14),
        )
