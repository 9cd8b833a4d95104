"""What a project is and has come to, as one page that can be sent to anybody."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.charts import (
    formats,
    loss_chart,
    metric_chart,
    pareto_chart,
    search_chart,
    sensitivity_chart,
)
from workbench.charts.spoken import said
from workbench.charts.text import _
from workbench.charts.words import file_title, parity_text, trial_kinds
from workbench.engine.errors import WorkbenchError
from workbench.studio.project import not_writable, safe_name, write_whole
from workbench.studio.report_page import Cell, ReportPage
from workbench.studio.state import ExportedFile

if TYPE_CHECKING:
    from workbench.studio.session import Session

NUMBER = "number"
DEFAULT_LOSS = 0.005
"""The target line of the search chart in a project whose search named none."""


def report_path(session: Session, path: str | os.PathLike[str] | None) -> Path:
    """Where the report goes: ``path``, else ``exports/<project>_report.html`` in the project."""
    if path is not None:
        return Path(path).expanduser().absolute()
    return session.project.exports / f"{safe_name(session.project.name)}_report.html"


def write_report(session: Session, path: str | os.PathLike[str] | None) -> Path:
    """Write the report, whole or not at all.

    Errors: ``NotWritable``; ``MissingFile`` where the project was deleted.
    """
    target = report_path(session, path)
    if path is None:
        session.project.store.ensure_there()
    text = report_html(session)
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    except OSError as error:
        raise not_writable(target.parent, error) from error
    write_whole(target, text)
    return target


def report_html(session: Session) -> str:
    """The report as HTML: opens without a net, in light and dark; its text without JavaScript."""
    summary = session.summary
    when = time.strftime("%Y-%m-%d %H:%M")
    about = _("{model} · {data} · written on {when} by Compression Workbench").format(
        model=summary.model, data=summary.data, when=when
    )
    page = ReportPage(session.project.name, about)
    _figures(page, session)
    _layers(page, session)
    _trials(page, session)
    _training(page, session)
    _modules(page, session)
    _export(page, session)
    _reproduce(page, session)
    return page.html()


def _figures(page: ReportPage, session: Session) -> None:
    summary = session.summary
    name = summary.metric_name
    about = "≈ " if summary.metric_is_prediction else ""
    pairs = [
        (
            formats.metric_title(name) or _("metric"),
            f"{formats.metric(summary.metric_float, name)} → "
            f"{about}{formats.metric(summary.metric_current, name)}",
        ),
        (_("size"), f"{formats.size(summary.size_float)} → {formats.size(summary.size_current)}"),
        (
            _("bit-operations"),
            f"{formats.bit_operations(summary.bops_float)} → "
            f"{formats.bit_operations(summary.bops_current)}",
        ),
        (
            _("quantised"),
            _("{n} of {total} layers").format(n=summary.quantized, total=summary.eligible),
        ),
    ]
    page.readouts(pairs)
    if summary.metric_is_prediction:
        page.paragraph(
            _("≈ is predicted from the layers' errors; Evaluate or Export measures it."), "muted"
        )


def _layers(page: ReportPage, session: Session) -> None:
    table = session.layers
    page.heading(_("Layers"))
    if not len(table):
        page.paragraph(_("The model's layers are not known yet."), "muted")
        return
    if table["error"].notna().any():
        page.chart(
            _("Error by layer"), lambda dark: sensitivity_chart(table, dark=dark, height=300)
        )
    else:
        page.paragraph(_("Nothing measured yet: press Analyse"), "muted")
    heads: list[Cell] = [
        _("name"), _("type"), _("shape"), (_("parameters"), NUMBER), ("MAC", NUMBER),
        _("what is done"), _("activation"), _("weights"), ("1 − cos", NUMBER), ("SQNR", NUMBER),
    ]  # fmt: skip
    page.table(heads, (_layer_row(row) for row in table.to_dict("records")))


def _layer_row(row: dict[Any, Any]) -> list[Cell]:
    quantised = bool(row["eligible"] and row["quant_enable"])
    if not row["eligible"]:
        done = _("stays float: {reason}").format(reason=said(row["reason"]) or _("not quantisable"))
    else:
        done = "● " + _("quantised") if quantised else "○ " + _("left float")
    weighted = row["type"] != "AvgPool2d"
    decibel = row["sqnr"]
    return [
        str(row["name"]), str(row["type"]), str(row["shape"]),
        (f"{row['parameters']:,}", NUMBER), (formats.count(float(row["macs"])), NUMBER), done,
        f"{row['act_algo']} · {row['act_bits']} bit" if quantised else "",
        f"{row['wts_algo']} · {row['wts_bits']} bit" if quantised and weighted else "",
        (f"{row['error']:.3e}" if _known(row["error"]) else formats.UNKNOWN, NUMBER),
        (f"{decibel:.1f} dB" if _known(decibel) else formats.UNKNOWN, NUMBER),
    ]  # fmt: skip


def _known(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _trials(page: ReportPage, session: Session) -> None:
    trials, summary = session.trials, session.summary
    if not len(trials):
        return
    page.heading(_("Trials"))
    asked = session.project.store.get("search") or {}
    target = float(asked.get("max_loss", DEFAULT_LOSS))
    shared: dict[str, Any] = {
        "metric_name": summary.metric_name or _("metric"),
        "metric_float": summary.metric_float,
    }
    if asked:
        text = _("Searched with {strategy}, at most {loss} lost, layers ordered by {sensitivity}.")
        page.paragraph(
            text.format(
                strategy=asked.get("strategy", ""),
                loss=formats.loss(target, summary.metric_name),
                sensitivity=asked.get("sensitivity", ""),
            )
        )
    page.chart(
        _("Metric by trial"),
        lambda dark: search_chart(trials, target, dark=dark, height=280, **shared),
    )
    files = session.exports.files if session.exports is not None else ()
    page.chart(
        _("Metric by size of every trial"),
        lambda dark: pareto_chart(trials, target, files=files, dark=dark, height=280, **shared),
    )
    name, kinds = summary.metric_name, trial_kinds()
    heads: list[Cell] = [
        _("trial"), _("kind"), (formats.metric_title(name) or _("metric"), NUMBER),
        (_("loss"), NUMBER), (_("size"), NUMBER), (_("bit-operations"), NUMBER),
        (_("time"), NUMBER), _("left float"),
    ]  # fmt: skip
    page.table(
        heads,
        (
            [
                str(row["trial"]), kinds.get(str(row["kind"]), str(row["kind"])),
                (formats.metric(row["metric"], name), NUMBER),
                (formats.loss(row["loss"], name), NUMBER), (formats.size(row["size"]), NUMBER),
                (formats.bit_operations(row["bops"]), NUMBER), (f"{row['seconds']:.1f} s", NUMBER),
                _("all") if row["kind"] == "float" else ", ".join(row["float_layers"]),
            ]
            for row in trials.to_dict("records")
        ),
    )  # fmt: skip


def _training(page: ReportPage, session: Session) -> None:
    training, curves = session.training, session.curves
    if training is None:
        return
    summary = session.summary
    page.heading(_("Training"))
    text = _("{method} of {layers} layers on {data}: {steps} steps, {metric} {value}.")
    page.paragraph(
        text.format(
            method=training.method,
            layers=training.layers,
            data=training.data,
            steps=training.steps,
            metric=formats.metric_title(summary.metric_name) or _("metric"),
            value=formats.metric(training.metric, summary.metric_name),
        )
    )
    if len(curves.steps):
        page.chart(_("Loss by step"), lambda dark: loss_chart(curves.steps, dark=dark, height=240))
    if len(curves.evaluations):
        page.chart(
            _("Metric by step"),
            lambda dark: metric_chart(
                curves.evaluations,
                metric_name=summary.metric_name,
                metric_float=summary.metric_float,
                dark=dark,
                height=240,
            ),
        )
    page.table(
        [_("setting"), _("value")],
        ([name, str(value)] for name, value in _flat(training.asked)),
    )


def _flat(settings: Any) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value)
        elif value not in (None, ""):
            yield str(name), value


def _modules(page: ReportPage, session: Session) -> None:
    found = session.quantized
    if found is None:
        return
    name = session.summary.metric_name
    page.heading(_("Quantised as modules"))
    page.readouts(
        [
            (_("float"), formats.metric(found.metric_float, name)),
            (_("calibrated"), formats.metric(found.metric_calibrated, name)),
            (_("converted"), formats.metric(found.metric_converted, name)),
            (
                _("size"),
                f"{formats.size(found.bytes_float)} → {formats.size(found.bytes_converted)}",
            ),
        ]
    )
    page.table(
        [_("name"), _("what is done"), _("algorithm"), _("formats"), _("reason")],
        ([x.name, x.action, x.algorithm, x.formats, x.reason] for x in found.layers),
    )


def _export(page: ReportPage, session: Session) -> None:
    result = session.exports
    if result is None or not result.files:
        return
    name = session.summary.metric_name
    page.heading(_("Exported files"))
    heads: list[Cell] = [
        _("file"), _("what it is"), (_("size"), NUMBER), (_("smaller"), NUMBER),
        (_("metric in ONNX Runtime"), NUMBER), (_("latency"), NUMBER),
    ]  # fmt: skip
    page.table(heads, (_file_row(file, name) for file in result.files))
    for line in result.parity:
        text = f"{'✓' if line.ok else '✕'} {parity_text(line.text)}"
        page.paragraph(text, "good" if line.ok else "bad")


def _file_row(file: ExportedFile, name: str) -> list[Cell]:
    latency = formats.UNKNOWN
    if file.latency_ms is not None:
        latency = f"{file.latency_ms:.2f} ms"
        if file.latency_spread_ms is not None:
            latency += f" ± {file.latency_spread_ms:.2f}"
    metric = (
        formats.metric(file.metric, name)
        if file.metric is not None
        else _("integers: not run by ONNX Runtime")
    )
    return [
        Path(file.path).name, file_title(file.kind), (formats.size(file.bytes), NUMBER),
        (f"{file.ratio:.1f}×", NUMBER), (metric, NUMBER), (latency, NUMBER),
    ]  # fmt: skip


def _reproduce(page: ReportPage, session: Session) -> None:
    try:
        script, config = session.script(), session.config_json()
    except WorkbenchError:  # a model without layers has neither
        return
    page.heading(_("The same again"))
    page.code(_("This script makes the record and the files again"), script, opened=True)
    page.code("ptq.json", config)
