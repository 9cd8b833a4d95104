"""One layer from inside: its distributions, and the ways to quantise it side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import panel as pn
import panel_material_ui as pmui
import plotly.graph_objects as go

from workbench.app.html import ThemedHTML, escape, notice
from workbench.app.i18n import _, ngettext
from workbench.app.job_notice import JobNotice
from workbench.app.layer_table import SHORT
from workbench.app.plot import Plot
from workbench.app.style import BESIDE, TABLE_CSS, aligned
from workbench.app.view import View
from workbench.app.window import INSPECT_TAB, WindowState
from workbench.charts import (
    comparison_frame,
    error_chart,
    layer_histogram_chart,
    output_scatter,
    weight_range_chart,
)
from workbench.charts.comparison import COLUMNS
from workbench.charts.words import job_sentence
from workbench.studio.inspections import in_use
from workbench.studio.session import Session

if TYPE_CHECKING:
    from workbench.studio.inspections import Inspection

USE = "use"
HEIGHT = 205
ROW = 36  # what a row of the theme takes, whatever rowHeight says
NUMBERS = dict.fromkeys(("scale", "offset", "error", "sqnr", "seconds"), "right")
_CSS = """
.tabulator-row .tabulator-cell[tabulator-field="use"] { cursor: pointer; font-weight: 600;
  color: var(--panel-primary-color); }
.tabulator-row:hover .tabulator-cell[tabulator-field="use"] { color: inherit; }
.tabulator-row .tabulator-cell[tabulator-field="use"]:hover { text-decoration: underline; }
"""


def settings_text(settings: dict[str, Any]) -> str:
    """A layer's settings in words: ``IFMR, 8 bits · ARQ, 8 bits, per channel``."""
    text = f"{SHORT[settings['act_algo']]}, {_bits(settings['act_bits'])}"
    if settings.get("dmq"):
        text += f", DMQ {settings['dmq']:g}"
    if "wts_algo" in settings:
        where = _("per channel") if settings["channel_wise"] else _("per tensor")
        text += f" · {SHORT[settings['wts_algo']]}, {_bits(settings['wts_bits'])}, {where}"
    return text


def _bits(bits: int) -> str:
    return ngettext("{n} bit", "{n} bits", bits).format(n=bits)


class InspectTab(View):
    """Choose a layer, compare, look, use."""

    def __init__(self, session: Session, window: WindowState) -> None:
        super().__init__(session, window, INSPECT_TAB)
        self.state = JobNotice(session, window, ("open", "inspect"))
        self.parts = [self.state]
        self._shown: tuple[Any, ...] = ()
        self._inspection: Inspection | None = None
        small = {"size": "small", "margin": 0}
        self.layer = pmui.Select(label=_("layer"), options=[], width=300, **small)
        self.previous = self._button("‹", lambda: self._step(-1), "outlined")
        self.next = self._button("›", lambda: self._step(1), "outlined")
        self.compare = self._button(_("Compare"), self.start, "contained")
        self.ada = pmui.Checkbox(
            label=_("learn the rounding too (ADA)"), value=False, size="small", margin=0
        )
        self.steps = pmui.IntInput(
            label=_("steps"), value=1000, start=1, end=1_000_000, width=110, **small
        )
        window.keep("inspect.ada", self.ada)
        window.keep("inspect.steps", self.steps)
        self.text = ThemedHTML(margin=(4, 0))
        self.histogram = Plot(go.Figure(), height=HEIGHT, label=_("Input and weights"))
        self.weights = Plot(go.Figure(), height=HEIGHT, label=_("Weights by output channel"))
        self.errors = Plot(go.Figure(), height=HEIGHT, label=_("Error of the output"))
        self.scatter = Plot(go.Figure(), height=HEIGHT, label=_("Quantised against float"))
        self.table = pn.widgets.Tabulator(
            pd.DataFrame({column: pd.Series(dtype=object) for column in (*COLUMNS, USE)}),
            show_index=False,
            pagination=None,
            disabled=True,
            selectable=False,
            titles={
                "label": _("algorithm"), "what": _("of"), "scale": _("scale"),
                "offset": _("offset"), "error": "1−cos", "sqnr": "SQNR", "seconds": _("time"),
                "state": "", USE: "",
            },
            widths={
                "label": 150, "what": 150, "scale": 150, "offset": 66, "error": 90, "sqnr": 84,
                "seconds": 72, USE: 84, "state": 320,
            },
            text_align=NUMBERS,
            header_align=NUMBERS,
            layout="fit_data_stretch",
            theme="materialize",
            configuration={"columnDefaults": {"headerSort": False}, "rowHeight": 28},
            sizing_mode="stretch_width",
            height=460,
            margin=0,
            stylesheets=[TABLE_CSS, _CSS],
        )  # fmt: skip
        self.table.on_click(self._clicked)
        self.charts = pn.Column(
            self.histogram,
            pn.Row(
                self.weights,
                self.errors,
                self.scatter,
                sizing_mode="stretch_width",
                margin=0,
                styles=BESIDE,
            ),
            sizing_mode="stretch_width",
            margin=0,
        )
        self.results = pn.Column(
            self.charts, self.table, sizing_mode="stretch_width", margin=0, visible=False
        )
        self.watch(self.layer, self._chose, "value")
        self.watch(session, self.update, "layers", "inspected", "job")
        self.watch(window, self.update, "inspected", "dark")
        self.update()

    def _button(self, label: str, action: Any, variant: str) -> Any:
        button = pmui.Button(label=label, variant=variant, size="small", margin=0)
        self.press(button, action)
        return button

    # -- what the user does ---------------------------------------------------------------------

    def start(self) -> None:
        """Compare the chosen layer; learning the rounding only where that was asked for."""
        algorithms = ["ifmr", "hfmg", "minmax", "arq_quantize"]
        if self.ada.value:
            algorithms.append("ada_quantize")
        name, steps = self.window.inspected, int(self.steps.value or 1)
        self.act(
            lambda: self.session.inspect(
                name, algorithms=algorithms, ada_iterations=steps, wait=False
            )
        )

    def use(self, row: int) -> None:
        """Make one of the compared ways the layer's own."""
        found = self._inspection
        if found is None or not 0 <= row < len(found.alternatives):
            return
        one = found.alternatives[row]
        if (
            one.settings
            and not one.trouble
            and self.act(lambda: self.session.use(found.name, one.settings))
        ):
            self.window.notice = ""

    def _clicked(self, event: Any) -> None:
        if event.column == USE:
            self.use(event.row)

    def _chose(self) -> None:
        if self.layer.value and self.layer.value != self.window.inspected:
            self.window.inspected = self.layer.value

    def _step(self, by: int) -> None:
        names = self.layer.options
        if self.window.inspected in names:
            self.window.inspected = names[(names.index(self.window.inspected) + by) % len(names)]

    # -- what the user sees ---------------------------------------------------------------------

    def update(self) -> None:
        session, window = self.session, self.window
        layers = session.layers
        names = layers[layers["eligible"]]["name"].tolist() if len(layers) else []
        if self.layer.options != names:
            self.layer.options = names
        if names and window.inspected not in names:
            known = sorted(session.inspected, key=session.inspected.__getitem__, reverse=True)
            candidates = [name for name in (*window.selected, *known) if name in names]
            window.inspected = (candidates or names)[0]
            return  # that comes back here
        if names and self.layer.value != window.inspected:
            self.layer.value = window.inspected
        job = session.job
        active = job is not None and job.active
        for control in (self.previous, self.next):
            control.disabled = not names
        self.compare.disabled = active or not names
        self._load()
        self._describe(bool(names))
        self.results.visible = self._inspection is not None
        if self._inspection is not None:
            self._draw(self._inspection)

    def _load(self) -> None:
        """Read the layer's inspection, unless it is the one in hand."""
        name = self.window.inspected
        when = self.session.inspected.get(name)
        found = self._inspection
        if when is None:
            self._inspection = None
        elif found is None or (found.name, found.time) != (name, when):
            self._inspection = self.session.inspection(name)

    def _describe(self, known: bool) -> None:
        job, found = self.session.job, self._inspection
        if job is not None and job.active and job.kind == "inspect":
            text = notice(f"{job_sentence(job.kind, job.message)} …")
        elif not known:
            text = notice(_("No layer of this model can be quantised, or it is not open yet."))
        elif found is None:
            text = notice(
                _(
                    "Press Compare: it quantises this layer alone with every algorithm, on the "
                    "project's calibration data, and measures what each does to its output."
                )
            )
        else:
            text = f'<div class="wb-muted">{escape(self._sentence(found))}</div>'
        self.text.fill(text)

    def _sentence(self, found: Inspection) -> str:
        settings = settings_text(dict(found.settings))
        parts = [
            _("Compared with {settings}").format(settings=settings),
            _("{n} of {m} batches").format(n=found.batches, m=found.batches_known),
        ]
        if found.ada_iterations:
            parts.append(_("ADA {n} steps").format(n=found.ada_iterations))
        text = " · ".join(parts)
        row = self.session.layers.iloc[self.session.row(found.name)]
        if not in_use(found.settings, row):
            text += ". " + _("The layer's settings have changed since: compare again to be exact.")
        return text

    def _draw(self, found: Inspection) -> None:
        dark = self.window.dark
        row = self.session.layers.iloc[self.session.row(found.name)]
        used = [in_use(one.settings, row) for one in found.alternatives]
        frame = comparison_frame(found.alternatives, used)
        frame[USE] = [
            "" if now or one.trouble or not one.settings else _("use this")
            for one, now in zip(found.alternatives, used, strict=True)
        ]
        if not frame.equals(self.table.value):
            self.table.param.update(value=frame, height=ROW * len(frame) + 40)
        if self._shown == (found.name, found.time, dark):
            return
        self._shown = (found.name, found.time, dark)
        profile = found.profile
        self.histogram.draw(layer_histogram_chart(profile.histogram, dark=dark, height=HEIGHT))
        self.weights.draw(weight_range_chart(profile, dark=dark, height=HEIGHT))
        self.errors.draw(error_chart(profile, dark=dark, height=HEIGHT))
        self.scatter.draw(output_scatter(profile, dark=dark, height=HEIGHT))

    def __panel__(self) -> Any:
        return pn.Column(
            self.state,
            aligned(
                self.layer,
                self.previous,
                self.next,
                self.compare,
                self.ada,
                self.steps,
                margin=(10, 0, 6, 0),
            ),
            self.text,
            self.results,
            sizing_mode="stretch_width",
            margin=(0, 14, 10, 14),
        )
