"""Module-level quantisation in a notebook: formats by layer, outliers, SmoothQuant, the result."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from workbench.charts import formats, outlier_chart, smoothing_chart, weight_error_chart
from workbench.charts.spoken import said
from workbench.charts.text import N_, _, ngettext
from workbench.studio.format_choices import FLOAT, SEPARATOR, program_text, ways_by_format
from workbench.studio.formats_state import error_series, format_columns, loudest
from workbench.widgets import figures
from workbench.widgets.chart import Chart
from workbench.widgets.job_bar import JobBar
from workbench.widgets.view import SessionView, bar, button, table_html

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from workbench.studio.formats_state import QuantizedModel
    from workbench.studio.session import Session

SHOWN = ("int8", "float8", "int4", "int4 g32", "mxfp4")
MOST_LAYERS = 24
FLOAT_TYPES = (
    (N_("float type as it is"), "keep"), (N_("cast to bfloat16"), "bfloat16"),
    (N_("cast to float16"), "float16"), (N_("as it is, any format"), "any"),
)  # fmt: skip


class FormatsPanel(SessionView):
    """Measure the formats, choose one for the layers in ``layers``, quantise and measure.

    No layer marked: the choice is for all that it takes. The smoothing chart is of the first one
    marked. The same by code: ``session.compare_formats``, ``choose_way``, ``quantize_modules``.
    """

    def __init__(self, session: Session, dark: bool | None = None) -> None:
        self.session = session
        self._dark = dark
        self._by_format = ways_by_format()
        self._proposed = False
        self.measure = button(_("Measure formats"), self._measure)
        self.format = w.Dropdown(
            options=list(self._by_format), value="int8/int8", tooltip=_("inputs/weights")
        )
        self.format.layout.width = "150px"
        self.algorithm = w.Dropdown(tooltip=_("algorithm"))
        self.algorithm.layout.width = "130px"
        self.apply = button(_("Use"), self._apply, tip=_("For the marked layers, or all it takes"))
        self.float_type = w.Dropdown(
            options=[(_(title), kind) for title, kind in FLOAT_TYPES],
            value="keep",
            tooltip=_("float type"),
        )
        self.float_type.layout.width = "180px"
        self.start = button(_("Quantise and measure"), self._start, style="primary")
        self.bar = JobBar(session, kinds=("formats", "quantize"))
        self.layers = w.SelectMultiple(description=_("layers"), rows=6)
        self.layers.layout.width = "620px"
        self.note = w.HTML()
        self.table = w.HTML(layout=w.Layout(max_height="300px", overflow="auto"))
        self.config = w.HTML()
        self.result = w.HTML()
        self._figures = self._build()
        self.errors, self.outliers, self.smoothing = (
            figures.live(figure, dark=self.dark) for figure in self._figures
        )
        titles = (
            _("Weight error by layer"), _("Input channels by layer"),
            _("Before and after SmoothQuant"),
        )  # fmt: skip
        self.charts = w.VBox(
            [
                Chart(figure, title, session.project.name)
                for figure, title in zip(
                    (self.errors, self.outliers, self.smoothing), titles, strict=True
                )
            ]
        )
        super().__init__(
            session,
            [
                bar(
                    self.measure, self.format, self.algorithm, self.apply, self.float_type,
                    self.start,
                ),
                self.bar, self.note, self.layers, self.table, self.charts, self.result, self.config,
            ],
        )  # fmt: skip
        self.format.observe(lambda _: self._offer(), "value")
        self.layers.observe(lambda _: None if self._muted else self._draw(), "value")
        self.float_type.observe(lambda _: self._describe(), "value")
        self.watch(self.refresh, "formats", "ways", "quantized")
        self.watch(self._running, "job", "layers")
        self._offer()
        self.refresh()

    # -- what the user does ---------------------------------------------------------------------

    def _measure(self) -> None:
        self.act(lambda: self.session.compare_formats(wait=False))

    def _start(self) -> None:
        value = self.float_type.value
        self.act(lambda: self.session.quantize_modules(float_type=value, wait=False))

    def _offer(self) -> None:
        known = self._by_format[self.format.value]
        if tuple(self.algorithm.options) != tuple(known):
            self.algorithm.options = known
            self.algorithm.value = known[-1] if known else None
        self.algorithm.disabled = not known

    def _apply(self) -> None:
        from workbench.engine.analysis.module_formats import WAYS

        way = FLOAT
        if self.format.value != FLOAT:
            way = f"{self.format.value}{SEPARATOR}{self.algorithm.value}"
        table = self.session.formats
        names = list(self.layers.value) or [
            name
            for name, kind in zip(table["name"], table["type"], strict=True)
            if way == FLOAT or WAYS[way].takes(kind)
        ]
        self.act(lambda: self.session.choose_way(names, way))

    # -- what the user sees ---------------------------------------------------------------------

    def _build(self) -> tuple[go.Figure, go.Figure, go.Figure]:
        session = self.session
        table = session.formats
        loud = loudest(table, MOST_LAYERS)
        series = {key: found for key, found in error_series(table, SHOWN).items() if found}
        one = session.channel_profiles(self.layers.value[:1] or loudest(table, 1))
        return (
            weight_error_chart(series, dark=self.dark),
            outlier_chart(session.channel_profiles(loud), dark=self.dark),
            smoothing_chart(one[0], dark=self.dark) if one else outlier_chart((), dark=self.dark),
        )

    def _running(self) -> None:
        job = self.session.job
        active = job is not None and job.active
        known = len(self.session.formats) > 0
        self.measure.disabled = active
        self.apply.disabled = not known
        self.start.disabled = active or not known or not self.session.format_configs()

    def refresh(self) -> None:
        session = self.session
        names = tuple(session.formats["name"])
        if names != self.layers.options:
            with self.mute():
                kept = tuple(name for name in self.layers.value if name in names)
                self.layers.options = names
                self.layers.value = kept
        if names and not self._proposed:
            self._proposed = True
            if session.format_obstacles():
                self.float_type.value = "bfloat16"
        self.table.value = layers_html(session.formats, session.layer_ways())
        metric = session.summary.metric_name
        self.result.value = result_html(session.quantized, metric)
        self._draw()
        self._describe()
        self._running()

    def _draw(self) -> None:
        before, self._figures = self._figures, self._build()
        shown = (self.errors, self.outliers, self.smoothing)
        for widget, old, new in zip(shown, before, self._figures, strict=True):
            figures.replace(widget, old, new, dark=self.dark)
            widget.layout.height = new.layout.height

    def _describe(self) -> None:
        configs = self.session.format_configs() if len(self.session.formats) else ()
        text = program_text(configs, self.float_type.value)
        self.config.value = f'<pre class="wb-script">{html.escape(text)}</pre>' if text else ""
        if not len(self.session.formats):
            words = _(
                "Measure formats rounds each layer alone in every number format and looks for "
                "input channels that stand out."
            )
        else:
            words = self._cast_words()
        self.note.value = f'<span class="wb-note">{html.escape(words)}</span>'

    def _cast_words(self) -> str:
        obstacles = self.session.format_obstacles()
        if not obstacles:
            return ""
        count = sum(len(names) for names in obstacles.values())
        names = ", ".join(obstacles)
        if self.float_type.value == "keep":
            return ngettext(
                "{formats}: not made for this float type. {n} layer would stay float: "
                "choose a cast.",
                "{formats}: not made for this float type. {n} layers would stay float: "
                "choose a cast.",
                count,
            ).format(formats=names, n=count)
        if self.float_type.value == "any":
            return _(
                "{formats}: not made for this float type. They are quantised all the same, as "
                "this float type runs here."
            ).format(formats=names)
        return _(
            "{formats}: not made for this float type. The weights are cast to {type} first, in "
            "a copy."
        ).format(formats=names, type=self.float_type.value)


def layers_html(table: pd.DataFrame, ways: dict[str, str]) -> str:
    """Layers by formats as an HTML table; empty before the first measurement."""
    if not len(table):
        return ""
    columns = format_columns(table)
    titles = (
        _("layer"), _("quantise as"), *columns, "W8A8", _("smoothed"), _("outlier"),
    )  # fmt: skip
    lines = []
    for row in table.to_dict("records"):
        cells: list[Any] = [row["name"], ways[row["name"]]]
        cells += [_shown(100 * row[key], " %") for key in columns]
        cells += [_shown(row[key], " dB") for key in ("minmax_db", "smoothquant_db")]
        cells.append(_shown(row["largest"], " ×"))
        lines.append(cells)
    return table_html(titles, lines)


def result_html(found: QuantizedModel | None, metric_name: str) -> str:
    """The metric before and after ``convert``, sizes and what stayed float."""
    if found is None:
        return ""
    title = html.escape(formats.metric_title(metric_name) or _("metric"))
    figures_ = " → ".join(
        f"{label} {formats.metric(value, metric_name)}"
        for label, value in (
            (_("float"), found.metric_float),
            (_("calibrated"), found.metric_calibrated),
            (_("converted"), found.metric_converted),
        )
    )
    left = "".join(
        f"<tr><td>{html.escape(layer.name)}</td><td>{html.escape(said(layer.reason))}</td></tr>"
        for layer in found.left
    )
    return (
        f'<div class="wb-note"><span class="wb-good">✓ {_("quantised")}</span>: '
        f"{title} {figures_} · "
        f"{formats.size(found.bytes_float)} → <b>{formats.size(found.bytes_converted)}</b> "
        f"{formats.ratio(found.bytes_float, found.bytes_converted)} · "
        f"{html.escape(found.folder)}</div>"
        + (f'<div class="wb-note">{_("Stayed float:")}</div><table class="wb-table">{left}</table>'
           if left else "")
    )  # fmt: skip


def _shown(value: float, unit: str) -> str:
    if not math.isfinite(value):
        return formats.UNKNOWN
    return f"{value:.2f}{unit}" if abs(value) < 1 else f"{value:.1f}{unit}"
