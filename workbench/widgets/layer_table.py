"""The Layers table: twenty-five row widgets, reused for any number of layers."""

from __future__ import annotations

import html
import math
import re
from typing import TYPE_CHECKING, Any

import ipywidgets as w
import numpy as np
import pandas as pd
import traitlets

from workbench.charts import formats
from workbench.charts.sensitivity import worst_first
from workbench.charts.spoken import error_text, said
from workbench.charts.text import N_, _
from workbench.engine.errors import WrongValue
from workbench.studio.columns import FLAGS, OPTIONS
from workbench.studio.pruning_words import WholeLayers, layer_reason
from workbench.widgets.view import SessionView, bar, button

if TYPE_CHECKING:
    from workbench.studio.session import Session

ROWS = 25
TICKS = {
    "quant_enable": N_("quantise"),
    "retrain_enable": N_("train"),
    "prune_enable": N_("prune"),
}
"""Columns with a box in every row, and what is said over them."""

SETTINGS = {
    "retrain_enable": N_("train"),
    "prune_enable": N_("prune"),
    "prune_ratio": N_("prune ratio"),
    "act_algo": N_("activations"),
    "wts_algo": N_("weights"),
    "act_bits": N_("activation bits"),
    "wts_bits": N_("weight bits"),
    "dmq": "DMQ",
}
SHORT = {"ifmr": "IFMR", "hfmg": "HFMG", "arq_quantize": "ARQ", "ada_quantize": "ADA"}
GRID = "grid-template-columns: 84px 86px 54px 48px 88px 36px 70px 58px 44px 70px minmax(60px, 1fr)"
HEAD = (
    N_("type"), N_("shape"), N_("params"), N_("MACs"), N_("act / wts"), N_("bits"), "1 − cos",
    "SQNR", N_("ratio"), N_("prune sens."), "",
)  # fmt: skip
PRUNE = ("prune_enable", "prune_ratio")
RATIOS = tuple(n / 10 for n in range(1, 9))
SHOW = {
    N_("all"): None,
    N_("quantised"): "quantised",
    N_("skipped"): "skipped",
    N_("not quantisable"): "ineligible",
}


ORDERS = (N_("execution order"), N_("worst first"))


class LayerTable(SessionView):
    """Layers with a box for each of ``TICKS``; filter, pages, bulk edits, undo.

    ``selected`` is the name of the layer that was clicked last ("" for none).
    """

    selected = traitlets.Unicode("")

    def __init__(self, session: Session, rows: int = ROWS) -> None:
        if rows < 1:
            raise WrongValue(
                f"a page of {rows} layers shows none", where="rows", hint="Give 1 or more."
            )
        self.rows = rows
        self.page = 0
        self._names: list[str] = []
        self._whole = WholeLayers(session)
        self._reasons: dict[str, str] = {}
        self._build_controls()
        self._boxes = [self._row(i) for i in range(rows)]
        head = "".join(
            f'<span class="{"wb-num" if title in NUMERIC else ""}">{_(title)}</span>'
            for title in HEAD
        )
        self._head = w.HBox(
            [
                *(
                    w.HTML(f'<span class="wb-row wb-head">{_(title)}</span>', layout=_TICK)
                    for title in TICKS.values()
                ),
                w.HTML(f'<span class="wb-row wb-head">{_("name")}</span>', layout=_NAME),
                w.HTML(f'<div class="wb-row wb-head" style="{GRID}">{head}</div>', layout=_FIGURES),
            ],
            layout=w.Layout(min_width=_WIDTH),
        )
        # Where the cell is narrower than its columns, the table scrolls as a whole.
        table = w.VBox([self._head, *self._boxes], layout=w.Layout(overflow="auto"))
        super().__init__(session, [self._filters, self._bulk, table, self._pager])
        self.watch(self.refresh, "layers", "pruning", "can_undo", "can_redo")
        self.observe(lambda _: self._show_selected(), "selected")
        self.refresh()

    # What the user sees and touches.

    def _build_controls(self) -> None:
        self.filter = w.Text(
            placeholder=_("name or regular expression"),
            description=_("filter"),
            continuous_update=True,
        )
        self.type = w.Dropdown(
            options=[(_("any type"), "")], tooltip=_("type"), layout=w.Layout(width="150px")
        )
        self.show = w.Dropdown(
            options=[(_(title), title) for title in SHOW],
            tooltip=_("show"),
            layout=w.Layout(width="150px"),
        )
        self.order = w.Dropdown(
            options=[(_(order), order) for order in ORDERS],
            tooltip=_("order"),
            layout=w.Layout(width="150px"),
        )
        for control in (self.filter, self.type, self.show, self.order):
            control.observe(lambda _: self._restart(), "value")
        self._filters = bar(self.filter, self.type, self.show, self.order)
        self.quantise = button(_("Quantise shown"), lambda: self._set_shown(True))
        self.skip = button(_("Skip shown"), lambda: self._set_shown(False))
        self.worst = w.BoundedIntText(value=3, min=1, max=100000, description=_("how many"))
        self.worst.layout.width = "140px"
        self.worst.style.description_width = "initial"
        self.skip_worst = button(_("Skip the worst"), self._skip_worst)
        self.setting = w.Dropdown(
            options=[(_(text), column) for column, text in SETTINGS.items()],
            tooltip=_("setting"),
            layout=w.Layout(width="140px"),
        )
        self.value = w.Dropdown(tooltip=_("value"), layout=w.Layout(width="90px"))
        self.set = button(
            _("Set for shown"), self._set_option, tip=_("Set it for all layers shown")
        )
        self.setting.observe(lambda _: self._offer(), "value")
        self._offer()
        self.undo = button(_("Undo"), lambda: self.act(self.session.undo))
        self.redo = button(_("Redo"), lambda: self.act(self.session.redo))
        self.count = w.HTML()
        self._bulk = bar(
            self.quantise,
            self.skip,
            self.skip_worst,
            self.worst,
            self.setting,
            self.value,
            self.set,
            self.undo,
            self.redo,
            self.count,
        )
        self.previous = button("‹", lambda: self._turn(-1), tip=_("Previous page"))
        self.next = button("›", lambda: self._turn(1), tip=_("Next page"))
        self.where = w.HTML()
        self._pager = w.HBox([self.previous, self.where, self.next])

    def _row(self, index: int) -> w.HBox:
        boxes = [self._box(index, column) for column in TICKS]
        name = w.Button(layout=_NAME)
        name.add_class("wb-name")
        figures = w.HTML(layout=_FIGURES)
        name.on_click(lambda _: self._clicked(index))
        return w.HBox([*boxes, name, figures], layout=w.Layout(min_width=_WIDTH))

    def _box(self, index: int, column: str) -> w.Checkbox:
        box = w.Checkbox(indent=False, layout=_TICK)
        box.add_class(f"wb-{column.split('_')[0]}")
        box.observe(lambda change: self._ticked(index, column, bool(change["new"])), "value")
        return box

    # What the user does.

    def _ticked(self, index: int, column: str, value: bool) -> None:
        place = self.page * self.rows + index
        if not self._muted and place < len(self._names):
            self.act(lambda: self.session.set_flag([self._names[place]], value, column))
            self.refresh()  # a refused edit puts the box back

    def _clicked(self, index: int) -> None:
        place = self.page * self.rows + index
        if place < len(self._names):
            self.selected = self._names[place]

    def _set_shown(self, value: bool) -> None:
        layers = self.session.layers
        eligible = set(layers["name"][layers["eligible"].to_numpy(dtype=bool)])
        names = [name for name in self._names if name in eligible]
        if names:
            self.act(lambda: self.session.set_flag(names, value))

    def _offer(self) -> None:
        column = self.setting.value
        options: list[tuple[str, Any]]
        if column in FLAGS:
            options = [(_("on"), True), (_("off"), False)]
        elif column == "prune_ratio":
            options = [(f"{ratio:g}", ratio) for ratio in RATIOS]
        elif column == "dmq":
            options = [(_("off"), 0.0), *((f"{n / 10:g}", n / 10) for n in range(2, 9))]
        else:
            options = [(SHORT.get(str(v), str(v)), v) for v in OPTIONS[column]]
        self.value.options = options
        self.value.index = 0  # a menu that was empty chooses nothing by itself

    def _set_option(self) -> None:
        layers, column = self.session.layers, self.setting.value
        able = set(layers["name"][layers["eligible"].to_numpy(dtype=bool)])
        if column in PRUNE:
            able = set(layers["name"]) - self._whole.obstacles.keys()
        names = [name for name in self._names if name in able]
        if names:
            before = self.session.notice
            self.act(lambda: self.session.set_option(names, column, self.value.value))
            if self.session.notice not in ("", before):
                self.say(said(self.session.notice))

    def _skip_worst(self) -> None:
        layers = self.session.layers
        order = layers.iloc[worst_first(layers)]
        measured = order[order["eligible"].astype(bool) & order["error"].notna()]
        if measured.empty:
            self.say(_("Nothing is measured yet: run session.analyse() first."))
            return
        names = [str(name) for name in measured["name"][: self.worst.value]]
        self.act(lambda: self.session.set_flag(names, False))

    def _turn(self, by: int) -> None:
        self.page += by
        self._draw()

    def _restart(self) -> None:
        if not self._muted:
            self.page = 0
            self.refresh()

    def _show_selected(self) -> None:
        if self.selected in self._names:
            self.page = self._names.index(self.selected) // self.rows
        self._draw()

    # How the table follows the session.

    def refresh(self) -> None:
        layers = self.session.layers
        with self.mute():
            kinds = dict.fromkeys(str(kind) for kind in layers["type"])
            types = [(_("any type"), ""), *((kind, kind) for kind in kinds)]
            if list(self.type.options) != types:
                self.type.options = types
        table = self._filtered(layers)
        self._names = [str(name) for name in table["name"]]
        self.undo.disabled = not self.session.can_undo
        self.redo.disabled = not self.session.can_redo
        on = int(layers["quant_enable"].sum()) if len(layers) else 0
        able = int(layers["eligible"].sum()) if len(layers) else 0
        count = _("{n} of {m} quantised").format(n=on, m=able)
        self.count.value = f'<span class="wb-note">{count}</span>'
        self._draw(table)

    def _filtered(self, layers: pd.DataFrame) -> pd.DataFrame:
        keep = np.ones(len(layers), dtype=bool)
        text = self.filter.value.strip()
        if text:
            try:
                pattern = re.compile(text, re.IGNORECASE)
            except re.error:
                pattern = re.compile(re.escape(text), re.IGNORECASE)
            keep &= np.array(
                [bool(pattern.search(str(name))) for name in layers["name"]], dtype=bool
            )
        if self.type.value:
            keep &= (layers["type"] == self.type.value).to_numpy(dtype=bool)
        state = SHOW[self.show.value]
        if state is not None:
            keep &= (layers["state"] == state).to_numpy(dtype=bool)
        rows = worst_first(layers) if self.order.value == "worst first" else np.arange(len(layers))
        return layers.iloc[[row for row in rows if keep[row]]]

    def _draw(self, table: pd.DataFrame | None = None) -> None:
        if table is None:
            table = self._filtered(self.session.layers)
        pages = max(1, math.ceil(len(table) / self.rows))
        self.page = min(max(self.page, 0), pages - 1)
        start = self.page * self.rows
        shown = table.iloc[start : start + self.rows]
        self._reasons = self._whole.reasons()
        with self.mute():
            for box, row in zip(self._boxes, shown.itertuples(index=False), strict=False):
                self._fill(box, row)
            for box in self._boxes[len(shown) :]:
                box.layout.display = "none"
        self.previous.disabled = self.page == 0
        self.next.disabled = self.page >= pages - 1
        self._pager.layout.display = "none" if pages == 1 and len(table) else ""
        where = (
            _("{first}–{last} of {all}").format(
                first=start + 1, last=start + len(shown), all=len(table)
            )
            if len(table)
            else _("no layer matches")
        )
        self.where.value = f'<span class="wb-note">{where}</span>'

    def _fill(self, box: w.HBox, row: Any) -> None:
        *ticks, name, figures = box.children
        box.layout.display = ""
        tips = {
            "quant_enable": _("quantise {layer}"),
            "retrain_enable": _("train {layer}"),
            "prune_enable": _("prune {layer}"),
        }
        never = self.session.project.source.no_training
        for tick, column in zip(ticks, TICKS, strict=True):
            tick.value = bool(getattr(row, column))
            tick.tooltip = tips[column].format(layer=row.name)
            can = (
                row.name not in self._whole.obstacles if column == "prune_enable" else row.eligible
            )
            if column == "retrain_enable" and never is not None:
                can, tick.tooltip = False, error_text(never, where=False)
            tick.disabled = not can and not tick.value
        name.description = str(row.name)
        name.tooltip = str(row.name)
        name.button_style = "info" if row.name == self.selected else ""
        figures.value = row_html(row, said(self._reasons.get(row.name, "")))


_TICK = w.Layout(width="60px", flex="0 0 auto")
_NAME = w.Layout(width="200px", flex="0 0 auto")
_FIGURES = w.Layout(width="auto", flex="1 0 820px")
_WIDTH = "1224px"
"""The columns and their margins."""

NUMERIC = frozenset({"params", "MACs", "bits", "1 − cos", "SQNR", "ratio", "prune sens."})


def row_html(row: Any, whole: str = "") -> str:
    """The figures of one layer as one line of HTML; ``whole``: why it keeps all its channels."""
    reason = html.escape(layer_reason(said(str(row.reason or "")), whole))
    bits = f"{row.act_bits}/{row.wts_bits}" if row.eligible else ""
    algorithm = ""
    if row.eligible:
        algorithm = f"{SHORT.get(row.act_algo, row.act_algo)} / "
        algorithm += SHORT.get(row.wts_algo, row.wts_algo)
        algorithm += f" · DMQ {row.dmq:g}" if row.dmq else ""
    error = formats.UNKNOWN if math.isnan(row.error) else f"{row.error:.2e}"
    sqnr = formats.UNKNOWN if math.isnan(row.sqnr) else f"{row.sqnr:.1f} dB"
    share = f"{100 * row.mac_share:.1f} %"
    cells = (
        ("", html.escape(str(row.type))),
        ("", html.escape(str(row.shape))),
        ("wb-num", formats.count(row.parameters)),
        ("wb-num", share),
        ("", html.escape(algorithm)),
        ("wb-num", bits),
        ("wb-num", error),
        ("wb-num", sqnr),
        ("wb-num", f"{row.prune_ratio:.2f}" if row.prune_enable else ""),
        ("wb-num", formats.exact(row.prune_sensitivity)),
        ("wb-note", reason),
    )
    inner = "".join(f'<span class="{kind}" title="{text}">{text}</span>' for kind, text in cells)
    off = "" if row.state == "quantised" else " wb-off"
    return f'<div class="wb-row{off}" style="{GRID}">{inner}</div>'
