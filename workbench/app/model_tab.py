"""What capture found: layers by type, what can be quantised and why not, where the weight sits."""

from __future__ import annotations

from typing import Any

import pandas as pd
import panel as pn
import panel_material_ui as pmui

from workbench.app.html import ThemedHTML, escape
from workbench.app.i18n import _, said
from workbench.app.job_notice import JobNotice
from workbench.app.plot import Plot
from workbench.app.shrunk_result import made_from
from workbench.app.style import BESIDE
from workbench.app.view import View
from workbench.app.window import MODEL_TAB, WindowState
from workbench.charts import formats, module_chart
from workbench.studio.session import Session
from workbench.studio.state import Summary


def model_summary(layers: pd.DataFrame, summary: Summary) -> str:
    """Counts by layer type and, for what cannot be quantised, the reason in words."""
    if not len(layers):
        return f'<p class="wb-empty">{escape(_("The model is being opened."))}</p>'
    cells = []
    for kind, group in layers.groupby("type", sort=False):
        cells.append(
            f"<tr><td>{escape(str(kind))}</td><td class='wb-number'>{len(group)}</td>"
            f"<td class='wb-number'>{int(group['eligible'].sum())}</td>"
            f"<td class='wb-number'>{formats.count(float(group['parameters'].sum()))}</td>"
            f"<td class='wb-number'>{formats.count(float(group['macs'].sum()))}</td></tr>"
        )
    head = "".join(
        f"<th class='{css}'>{escape(title)}</th>"
        for title, css in (
            (_("layer type"), ""),
            (_("layers"), "wb-number"),
            (_("can be quantised"), "wb-number"),
            (_("parameters"), "wb-number"),
            ("MAC", "wb-number"),
        )
    )
    text = (
        f'<h2 class="wb">{escape(summary.model or _("Model"))}</h2>'
        f'<p class="wb-muted">{escape(said(summary.data))}</p>'
        f'<table class="wb"><thead><tr>{head}</tr></thead><tbody>{"".join(cells)}</tbody></table>'
    )
    refused = layers[~layers["eligible"]]
    if not len(refused):
        return text + f'<p class="wb-good">✓ {escape(_("Every layer can be quantised."))}</p>'
    lines = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape(str(kind))}</td>"
        f"<td>{escape(said(str(reason)))}</td></tr>"
        for name, kind, reason in zip(
            refused["name"], refused["type"], refused["reason"], strict=True
        )
    )
    return text + (
        f'<h2 class="wb">{escape(_("Layers that stay float"))}</h2>'
        f'<table class="wb"><thead><tr><th>{escape(_("name"))}</th><th>{escape(_("type"))}</th>'
        f"<th>{escape(_('why'))}</th></tr></thead><tbody>{lines}</tbody></table>"
    )


class ModelTab(View):
    """Summary on the left, map of the modules on the right."""

    def __init__(self, session: Session, window: WindowState) -> None:
        super().__init__(session, window, MODEL_TAB)
        self.state = JobNotice(session, window, ("open",))
        self.parts = [self.state]
        self.text = ThemedHTML()
        self.value = pmui.RadioButtonGroup(
            options={_("parameters"): "parameters", "MAC": "macs"}, value="parameters", size="small"
        )
        self.kind = pmui.RadioButtonGroup(
            options={_("treemap"): "treemap", _("icicle"): "icicle"}, value="treemap", size="small"
        )
        self.chart = Plot(self._figure(), height=460, label=_("Map of the modules"))
        self.watch(session, self.update, "layers", "summary", "origin")
        self.watch(window, self.update_theme, "dark")
        self.watch(self.value, self.draw, "value")
        self.watch(self.kind, self.draw, "value")
        self.update()

    def _figure(self) -> Any:
        return module_chart(
            self.session.layers,
            value=self.value.value,
            kind=self.kind.value,
            model_name=self.session.summary.model or _("model"),
            dark=self.window.dark,
            height=460,
        )

    def draw(self) -> None:
        self.chart.draw(self._figure())

    def update(self) -> None:
        session = self.session
        self.text.fill(made_from(session.origin) + model_summary(session.layers, session.summary))
        self.draw()

    def update_theme(self) -> None:
        self.draw()

    def __panel__(self) -> Any:
        return pn.Column(
            self.state,
            pn.Row(
                pn.Column(self.text, margin=0, styles={"flex": "0 1 480px"}),
                pn.Column(
                    pn.Row(self.value, self.kind, margin=0),
                    self.chart,
                    sizing_mode="stretch_width",
                    margin=0,
                    styles={"flex": "1 1 480px", "min-width": "0"},
                ),
                sizing_mode="stretch_width",
                styles=BESIDE,
            ),
            sizing_mode="stretch_width",
            margin=(8, 14),
        )
