"""Module-level quantisation: formats by layer, outliers, what smoothing does, the configuration."""

from __future__ import annotations

from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app.copy_button import CopyButton
from workbench.app.formats_table import FormatsTable
from workbench.app.html import ThemedHTML, escape, notice
from workbench.app.i18n import _, ngettext, said
from workbench.app.job_notice import JobNotice
from workbench.app.plot import Plot
from workbench.app.style import BESIDE, LEGIBLE, aligned
from workbench.app.variants_bar import VariantsBar
from workbench.app.view import View
from workbench.app.window import FORMATS_TAB, WindowState
from workbench.charts import formats, outlier_chart, smoothing_chart, weight_error_chart
from workbench.charts.sensitivity import short_name
from workbench.charts.words import job_sentence
from workbench.engine.analysis.module_formats import WAYS, WEIGHTS
from workbench.studio.format_choices import FLOAT, SEPARATOR, program_text, ways_by_format
from workbench.studio.formats_state import QuantizedModel, error_series, loudest
from workbench.studio.session import Session

HEIGHT = 268
MOST_FORMATS = 5
MOST_LAYERS = 14
SHOWN = ["int8", "float8", "int4", "int4 g32", "mxfp4"]


class FormatsTab(View):
    """Measure, look, choose for all or for some, quantise and measure."""

    def __init__(self, session: Session, window: WindowState) -> None:
        super().__init__(session, window, FORMATS_TAB)
        self.state = JobNotice(session, window, ("open", "formats", "quantize"))
        self.table = FormatsTable(session, window, self.update_selection)
        self.variants = VariantsBar(session, window, FORMATS_TAB)
        self.parts = [self.state, self.table, self.variants]
        self._by_format = ways_by_format()
        small = {"size": "small", "margin": 0}
        self.measure = self._button(
            _("Measure formats"), "straighten", lambda: session.compare_formats(wait=False)
        )
        self.format = pmui.Select(
            label=_("inputs/weights"), options=list(self._by_format), value="int8/int8",
            width=150, **small,
        )  # fmt: skip
        self.algorithm = pmui.Select(label=_("algorithm"), options=[], width=134, **small)
        self.apply = self._button("", "done_all", self._apply)
        self.float_type = pmui.Select(
            label=_("float type"),
            options={
                _("as it is"): "keep", _("cast to bfloat16"): "bfloat16",
                _("cast to float16"): "float16", _("as it is, any format"): "any",
            },
            value="keep", width=168, **small,
        )  # fmt: skip
        self.start = self._button(
            _("Quantise and measure"), "play_arrow",
            lambda: session.quantize_modules(float_type=self.float_type.value, wait=False),
            variant="contained",
        )  # fmt: skip
        self.stop = self._button(_("Stop"), "stop", session.cancel)
        self.text = ThemedHTML(margin=(4, 0))
        self.shown = pmui.MultiChoice(
            label=_("formats in the chart"), options=list(WEIGHTS), value=SHOWN,
            max_items=MOST_FORMATS, sizing_mode="stretch_width", margin=(2, 0),
        )  # fmt: skip
        self.errors = Plot(self._error_figure(), height=HEIGHT, label=_("Weight error by layer"))
        self.outliers = Plot(
            self._outlier_figure(), height=HEIGHT, label=_("Input channels by layer")
        )
        self.smoothing = Plot(
            self._smoothing_figure(), height=HEIGHT, label=_("Before and after SmoothQuant")
        )
        self.smoothing_title = ThemedHTML()
        self.result = ThemedHTML(margin=(8, 0), styles=LEGIBLE)
        self.config = ThemedHTML(styles={"overflow": "auto", "max-height": "300px"})
        self.copy = CopyButton(margin=0)
        self.config_row = pn.Column(
            aligned(
                ThemedHTML(f'<h2 class="wb">{escape(_("Configuration"))}</h2>', width=140,
                           sizing_mode=None),
                self.copy, margin=0,
            ),
            self.config,
            sizing_mode="stretch_width", margin=(8, 0), styles=LEGIBLE,
        )  # fmt: skip
        # Hidden until something is measured, so that an empty page does not look broken.
        row: dict[str, Any] = {"sizing_mode": "stretch_width", "margin": 0}
        chart = {**row, "styles": LEGIBLE}
        self.details = pn.Column(
            self.table,
            pn.Row(
                pn.Column(_title(_("Weight error by layer")), self.errors, self.shown, **chart),
                pn.Column(_title(_("Input channels that stand out")), self.outliers, **chart),
                pn.Column(self.smoothing_title, self.smoothing, **chart),
                sizing_mode="stretch_width", margin=(8, 0, 0, 0), styles={**BESIDE, "gap": "10px"},
            ),
            pn.Row(self.result, self.config_row, styles={**BESIDE, "gap": "0 24px"}, **row),
            visible=False,
            **row,
        )  # fmt: skip
        for name in ("format", "float_type", "shown"):
            window.keep(f"formats.{name}", getattr(self, name))
        self._proposed = self.float_type.value != "keep"
        self.watch(self.format, self._offer_algorithms, "value")
        self.watch(self.float_type, self.update, "value")
        self.watch(self.shown, self.update_errors, "value")
        self.watch(session, self.update_measured, "formats")
        self.watch(session, self.update, "ways", "quantized", "summary")
        self.watch(session, self.update_running, "job", "layers")
        self.watch(window, self.update_charts, "dark")
        self._offer_algorithms()
        self.update_measured()

    def _button(self, label: str, icon: str, action: Any, variant: str = "outlined") -> Any:
        button = pmui.Button(label=label, icon=icon, size="small", variant=variant, margin=0)
        self.press(button, lambda: self.act(lambda: action()))
        return button

    # -- what the user does ---------------------------------------------------------------------

    @property
    def way(self) -> str:
        """What the menus say."""
        if self.format.value == FLOAT:
            return FLOAT
        return f"{self.format.value}{SEPARATOR}{self.algorithm.value}"

    def _offer_algorithms(self) -> None:
        known = self._by_format[self.format.value]
        chosen = self.algorithm.value if self.algorithm.value in known else "".join(known[-1:])
        self.algorithm.param.update(options=known, value=chosen or None)
        self.algorithm.disabled = self.format.disabled or not known

    def _apply(self) -> None:
        """Give the ticked layers, or all that can be quantised so, what the menus say."""
        table, way = self.session.formats, self.way
        names = list(self.table.chosen)
        if not names:
            takes = WAYS[way].takes if way != FLOAT else (lambda _kind: True)
            pairs = zip(table["name"], table["type"], strict=True)
            names = [name for name, kind in pairs if takes(kind)]
        self.session.choose_way(names, way)
        self.window.notice = ""

    # -- charts -------------------------------------------------------------------------------

    def _error_figure(self) -> Any:
        series = error_series(self.session.formats, self.shown.value or [])
        return weight_error_chart(
            {key: found for key, found in series.items() if found},
            dark=self.window.dark, height=HEIGHT,
        )  # fmt: skip

    def _outlier_figure(self) -> Any:
        names = loudest(self.session.formats, MOST_LAYERS)
        profiles = self.session.channel_profiles(names)
        return outlier_chart(profiles, dark=self.window.dark, height=HEIGHT)

    def _smoothing_figure(self) -> Any:
        profiles = self.session.channel_profiles([self.table.layer])
        if not profiles:
            return outlier_chart((), dark=self.window.dark, height=HEIGHT)
        return smoothing_chart(profiles[0], dark=self.window.dark, height=HEIGHT)

    def update_errors(self) -> None:
        self.errors.draw(self._error_figure())

    def update_charts(self) -> None:
        self.update_errors()
        self.outliers.draw(self._outlier_figure())
        self.update_layer()

    def update_layer(self) -> None:
        name = self.table.layer
        self.smoothing.draw(self._smoothing_figure())
        self.smoothing_title.fill(
            f'<h2 class="wb" title="{escape(name)}">{escape(_("SmoothQuant:"))} '
            f"{escape(short_name(name, 36))}</h2>"
        )

    # -- words --------------------------------------------------------------------------------

    def update_measured(self) -> None:
        """Other layers, or other figures of them."""
        self.table.update()
        known = len(self.session.formats) > 0
        if known and not self._proposed and self.session.format_obstacles():
            self.float_type.value = "bfloat16"
        self._proposed = self._proposed or known
        self.update_errors()
        self.outliers.draw(self._outlier_figure())
        self.update_selection()
        self.update()

    def update_selection(self) -> None:
        """Another layer is looked at, or others are ticked."""
        chosen = len(self.table.chosen)
        self.apply.label = _("For {n} ticked").format(n=chosen) if chosen else _("For all layers")
        self.update_layer()

    def update_running(self) -> None:
        """What may be pressed, and one sentence; several times a second while a job runs."""
        job = self.session.job
        active = job is not None and job.active
        running = active and job is not None and job.kind in ("formats", "quantize")
        known = len(self.session.formats) > 0
        opened = len(self.session.layers) > 0 or self.session.without_graph
        self.measure.disabled = active or not opened
        self.stop.disabled = not running
        self.start.disabled = active or not self.copy.text
        self.text.fill(self._sentence(running, known))

    def update(self) -> None:
        """Other choices, or a result."""
        session = self.session
        known = len(session.formats) > 0
        self.details.visible = known
        for control in (self.apply, self.format, self.float_type):
            control.disabled = not known
        self.algorithm.disabled = not known or not self.algorithm.options
        text = program_text(session.format_configs() if known else (), self.float_type.value)
        self.copy.text = text
        self.config.fill(f'<pre class="wb"><code>{escape(text)}</code></pre>')
        self.result.fill(self._result(session.quantized))
        self.update_running()

    def _sentence(self, running: bool, known: bool) -> str:
        job = self.session.job
        if running and job is not None:
            words = job_sentence(job.kind, job.message)
            return f'<div role="status">{escape(words)} …</div>'
        if not known:
            return notice(
                _(
                    "For models of Linear layers, quantised layer for layer without a graph. "
                    "Measure formats rounds each layer alone in every number format and looks for "
                    "input channels that stand out."
                )
            )
        return self._cast_words() or self._summary()

    def _summary(self) -> str:
        ways = self.session.layer_ways()
        count = sum(way != FLOAT for way in ways.values())
        words = _("{n} of {m} layers are to be quantised.").format(n=count, m=len(ways)) + " "
        words += _(
            "Per cent: error of the weights. dB: output of the layer with int8 inputs and weights, "
            "as it is and with SmoothQuant. Outlier: largest input channel against the median one."
        )
        return f'<div class="wb-muted">{escape(words)}</div>'

    def _cast_words(self) -> str:
        """What the float type of the weights means for the choices, where it matters."""
        obstacles = self.session.format_obstacles()
        if not obstacles:
            return ""
        count = sum(len(names) for names in obstacles.values())
        ways = ", ".join(obstacles)
        takes = sorted({str(d).removeprefix("torch.") for w in obstacles for d in WAYS[w].dtypes})
        made = _("{formats}: made for weights in {types}.").format(
            formats=ways, types=", ".join(takes)
        )
        chosen = self.float_type.value
        if chosen == "keep":
            words = ngettext(
                "{n} layer would stay float: choose a cast under “float type”.",
                "{n} layers would stay float: choose a cast under “float type”.",
                count,
            ).format(n=count)
            return f'<div class="wb-notice" role="status">{escape(f"{made} {words}")}</div>'
        if chosen == "any":
            words = _("They are quantised all the same, as this float type runs here.")
        else:
            words = _("The weights are cast to {type} first, in a copy.").format(type=chosen)
        return f'<div class="wb-muted">{escape(f"{made} {words}")}</div>'

    def _result(self, found: QuantizedModel | None) -> str:
        if found is None:
            return ""
        name = self.session.summary.metric_name
        title = formats.metric_title(name) or _("metric")
        rows = (
            (_("float"), found.metric_float, found.bytes_float),
            (_("calibrated (before convert)"), found.metric_calibrated, None),
            (_("converted"), found.metric_converted, found.bytes_converted),
        )
        head = f'<td></td><th class="wb-number">{escape(title)}</th><td class="wb-number"></td>'
        head += f'<th class="wb-number">{escape(_("tensors"))}</th>'
        lines = "".join(
            f"<tr><td>{escape(label)}</td>"
            f'<td class="wb-number">{formats.metric(metric, name)}</td>'
            f'<td class="wb-number">'
            f"{formats.metric_delta(found.metric_float, metric, name) if place else ''}</td>"
            f'<td class="wb-number">{formats.size(size) if size is not None else ""}</td></tr>'
            for place, (label, metric, size) in enumerate(rows)
        )
        facts = [
            ngettext("{n} layer quantised", "{n} layers quantised", found.quantized).format(
                n=found.quantized
            ),
            _("{ratio} smaller").format(
                ratio=formats.ratio(found.bytes_float, found.bytes_converted)
            ),
            formats.duration(found.seconds),
        ]
        left = "".join(
            f"<tr><td>{escape(layer.name)}</td><td>{escape(said(layer.reason))}</td></tr>"
            for layer in found.left
        )
        details = (
            f"<details><summary>{escape(_('stayed float:'))} {len(found.left)}</summary>"
            f'<table class="wb">{left}</table></details>'
            if left
            else ""
        )
        return (
            f'<h2 class="wb">{escape(_("Quantised model"))}</h2>'
            f'<table class="wb"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'
            f'<p class="wb-muted"><b class="wb-good">✓ {escape(_("Done"))}</b>: '
            f"{escape(' · '.join(facts))}<br>{escape(found.folder)}</p>{details}"
        )

    def __panel__(self) -> Any:
        return pn.Column(
            self.state,
            aligned(
                self.measure, self.format, self.algorithm, self.apply, self.float_type,
                self.start, self.stop, self.variants.opener,
                sizing_mode="stretch_width", margin=(10, 0, 6, 0),
            ),
            self.variants,
            self.text,
            self.details,
            sizing_mode="stretch_width",
            margin=(0, 14, 10, 14),
        )  # fmt: skip


def _title(text: str) -> ThemedHTML:
    return ThemedHTML(f'<h2 class="wb">{escape(text)}</h2>')
