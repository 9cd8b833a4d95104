"""2:4 masks of a training: which layers have one, why others do not, and one of them drawn."""

from __future__ import annotations

from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app.html import ThemedHTML, escape
from workbench.app.i18n import _, said
from workbench.app.plot import Plot
from workbench.app.view import View
from workbench.app.window import TRAIN_TAB, WindowState
from workbench.charts import formats, sparse_weight_chart
from workbench.studio.masks import MaskRow
from workbench.studio.session import Session

HEIGHT = 300
MOST_ROWS = 400
EMPTY = ((0.0,),)


class MaskView(View):
    """A table of the layers, and the weight of the one that is chosen before and after."""

    def __init__(self, session: Session, window: WindowState) -> None:
        super().__init__(session, window, TRAIN_TAB)
        self.rows: tuple[MaskRow, ...] = ()
        self.table = ThemedHTML(
            sizing_mode="stretch_width", max_height=HEIGHT + 60, styles={"overflow": "auto"}
        )
        self.layer = pmui.Select(
            label=_("weight of"), options=[], width=320, size="small", margin=(4, 0)
        )
        self.plot = Plot(
            self._figure(), height=HEIGHT, label=_("Weight before and after its 2:4 mask")
        )
        self.body = pn.Column(
            ThemedHTML(f'<h2 class="wb">{escape(_("2:4 masks"))}</h2>', margin=(8, 0, 0, 0)),
            pn.Row(
                self.table,
                pn.Column(self.layer, self.plot, sizing_mode="stretch_width", margin=(0, 0, 0, 12)),
                sizing_mode="stretch_width",
                margin=0,
            ),
            sizing_mode="stretch_width",
            margin=0,
        )
        self.watch(session, self.update, "training")
        self.watch(self.layer, self.draw, "value")
        self.watch(window, self.draw, "dark")
        self.update()

    def _figure(self) -> Any:
        name = self.layer.value
        pair = self.session.masked_weights(name) if name else None
        before, after = pair if pair is not None else (EMPTY, EMPTY)
        return sparse_weight_chart(
            before, after, name=name or "", dark=self.window.dark, height=HEIGHT
        )

    def draw(self) -> None:
        self.plot.draw(self._figure())

    def update(self) -> None:
        training = self.session.training
        rows = training.masks if training is not None else ()
        self.body.visible = bool(rows)
        if rows == self.rows:
            return
        self.rows = rows
        self.table.fill(mask_table(rows))
        names = [row.layer for row in rows if row.density < 1.0]
        kept = self.layer.value if self.layer.value in names else None
        self.layer.param.update(options=names, value=kept or (names[0] if names else None))
        self.draw()

    def __panel__(self) -> Any:
        return self.body


def mask_table(rows: tuple[MaskRow, ...]) -> str:
    """Layer, share of its weights that stays, and why it has no mask."""
    count = sum(row.density < 1.0 for row in rows)
    head = "".join(
        f"<th class='{css}'>{escape(title)}</th>"
        for title, css in ((_("layer"), ""), (_("stays"), "wb-number"), (_("why not"), ""))
    )
    lines = "".join(
        f"<tr><td>{escape(row.layer)}</td><td class='wb-number'>{formats.percent(row.density)}</td>"
        f"<td class='wb-muted'>{escape(said(row.reason))}</td></tr>"
        for row in rows[:MOST_ROWS]
    )
    words = _("{count} of {all} layers have a mask.").format(count=count, all=len(rows))
    if len(rows) > MOST_ROWS:
        words += " " + _("The first {count} are listed.").format(count=MOST_ROWS)
    return (
        f'<div class="wb-muted">{escape(words)}</div>'
        f'<table class="wb"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'
    )
