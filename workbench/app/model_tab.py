"""What capture found: layers by type, what can be quantised and why not, where the weight sits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import panel as pn
import panel_material_ui as pmui

from workbench.app.html import ThemedHTML, escape, notice
from workbench.app.i18n import _, ngettext, said
from workbench.app.job_notice import JobNotice
from workbench.app.plot import Plot
from workbench.app.shrunk_result import made_from
from workbench.app.style import BESIDE
from workbench.app.view import View
from workbench.app.window import MODEL_TAB, WindowState
from workbench.charts import formats, module_chart
from workbench.studio.abilities import ABILITIES, obstacles
from workbench.studio.session import Session
from workbench.studio.state import Summary

NAMED = 4
"""So many layers with one reason are named; more are folded away."""


def model_summary(
    layers: pd.DataFrame, summary: Summary, obstacles: Mapping[str, Mapping[str, str]]
) -> str:
    """Counts by layer type and, for what cannot be done with a layer, the reason in words.

    ``obstacles``: as ``studio.abilities`` has them.
    """
    if not len(layers):
        return ""  # the notice above says that it is being opened, or why it is not
    able = {ability: ~layers["name"].isin(list(reasons)) for ability, reasons in obstacles.items()}
    cells = []
    for kind, group in layers.groupby("type", sort=False):
        counts = [len(group), *(int(able[ability][group.index].sum()) for ability in ABILITIES)]
        sizes = [formats.count(float(group[column].sum())) for column in ("parameters", "macs")]
        numbers = "".join(f"<td class='wb-number'>{value}</td>" for value in (*counts, *sizes))
        cells.append(f"<tr><td>{escape(str(kind))}</td>{numbers}</tr>")
    counts = [len(layers), *(int(able[ability].sum()) for ability in ABILITIES)]
    sizes = [formats.count(float(layers[column].sum())) for column in ("parameters", "macs")]
    numbers = "".join(f"<td class='wb-number'>{value}</td>" for value in (*counts, *sizes))
    cells.append(f"<tr><th>{escape(_('all'))}</th>{numbers}</tr>")
    head = "".join(
        f"<th class='{css}'>{escape(title)}</th>"
        for title, css in (
            (_("layer type"), ""),
            (_("layers"), "wb-number"),
            (_("can be quantised"), "wb-number"),
            (_("can be trained"), "wb-number"),
            (_("can be pruned"), "wb-number"),
            (_("parameters"), "wb-number"),
            ("MAC", "wb-number"),
        )
    )
    text = (
        f'<h2 class="wb">{escape(summary.model or _("Model"))}</h2>'
        f'<p class="wb-muted">{escape(said(summary.data))}</p>'
        + "".join(notice(said(text)) for text in summary.notices)
        + f'<table class="wb"><thead><tr>{head}</tr></thead><tbody>{"".join(cells)}</tbody></table>'
    )
    if not obstacles["quantised"]:
        text += f'<p class="wb-good">✓ {escape(_("Every layer can be quantised."))}</p>'
    titles = {
        "quantised": _("Layers that stay float"),
        "trained": _("Layers that quantisation-aware training leaves alone"),
        "pruned": _("Layers that keep all their channels"),
    }
    return text + "".join(_reasons(titles[name], obstacles[name]) for name in ABILITIES)


def _reasons(title: str, obstacles: Mapping[str, str]) -> str:
    """Layers by the reason that they have in common."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in obstacles.items():
        by_reason.setdefault(said(reason), []).append(name)
    lines = "".join(
        f"<tr><td>{escape(reason)}</td><td>{_names(names)}</td></tr>"
        for reason, names in by_reason.items()
    )
    if not lines:
        return ""
    return (
        f'<h2 class="wb">{escape(title)}</h2>'
        f'<table class="wb wb-reasons"><thead><tr><th>{escape(_("why"))}</th>'
        f"<th>{escape(_('which'))}</th></tr></thead><tbody>{lines}</tbody></table>"
    )


def _names(names: Sequence[str]) -> str:
    text = escape(", ".join(names))
    if len(names) <= NAMED:
        return text
    count = ngettext("{n} layer", "{n} layers", len(names)).format(n=len(names))
    return f"<details><summary class='wb-whole'>{escape(count)}</summary>{text}</details>"


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
        self.chart = Plot(
            self._figure(), height=460, label=_("Map of the modules"), hierarchical=True
        )
        self.watch(session, self.update, "layers", "summary", "origin", "pruning")
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
        text = model_summary(session.layers, session.summary, obstacles(session))
        self.text.fill(made_from(session.origin) + text)
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
