"""The table of the Layers tab: same layers, same order, same selection as the chart."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd
import panel as pn
from panel.io.model import JSCode

from workbench.app.i18n import _, error_text, said
from workbench.app.rows import modules, shown_layers
from workbench.app.style import TABLE_CSS
from workbench.app.view import View
from workbench.app.window import INSPECT_TAB, LAYERS_TAB, WindowState
from workbench.charts import formats
from workbench.charts.sensitivity import bar_states
from workbench.studio.columns import OPTIONS
from workbench.studio.pruning_words import WholeLayers, layer_reason
from workbench.studio.session import Session

TICKS = ("quant_enable", "retrain_enable", "channel_wise", "prune_enable")
RATIO = "prune_ratio"
BITS = ("act_bits", "wts_bits")
CHOSEN = "selected"
GROUP = "module"
MENUS = ("act_algo", "wts_algo", "act_bits", "wts_bits", "dmq")
NO_DMQ = "—"
STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
RATIOS = (0.1, *STRENGTHS)
SHORT = {"ifmr": "IFMR", "hfmg": "HFMG", "arq_quantize": "ARQ", "ada_quantize": "ADA"}
# An editor opens by a click, not by the focus: the keyboard moves over the cells.
TABLE = {
    "columnDefaults": {"headerSort": False},
    "rowHeight": 28,
    "editTriggerEvent": "click",
    "groupToggleElement": "header",
}
_TICK = """\
(cell, on, off, label, never) => {
  const box = document.createElement("span");
  box.setAttribute("role", "checkbox");
  box.setAttribute("aria-label", label);
  box.setAttribute("aria-checked", String(Boolean(cell.getValue())));
  box.textContent = cell.getValue() ? on : off;
  if (never) {
    box.setAttribute("aria-disabled", "true");
    box.title = never;
  }
  return box;
}"""
# A long name loses its beginning (style.TABLE_CSS): its end tells neighbours apart.
WHOLE_NAME = JSCode("""\
(cell) => {
  const name = document.createElement("bdi");
  name.textContent = cell.getValue();
  cell.getElement().title = cell.getValue();
  return name;
}""")
# A header of a group is a row with one cell, which says whether the group is open.
_GROUP = """\
(value, count, data, group) => {
  group._group.element.setAttribute("role", "row");
  const cell = document.createElement("span");
  cell.className = "wb-group";
  cell.setAttribute("role", "gridcell");
  cell.setAttribute("aria-expanded", String(group._group.visible));
  cell.tabIndex = -1;
  cell.textContent = `${value.replace(/^module: /, "")} · ${count}`;
  return cell;
}"""
AS_LONG_AS_THE_WINDOW = """
:host { --wb-height: max(312px, calc(100vh - 560px));
  height: var(--wb-height) !important; flex-basis: var(--wb-height) !important; }
.tabulator { height: 100% !important; }
"""
MOST_PATCHED = 32  # above this replacing the whole value is faster and keeps the scroll position

STATE_ICONS = {
    "quantised": "●", "worse": "▲", "skipped": "○", "ineligible": "✕",
    "pinned": "◆", "pinned_float": "◇",
}  # fmt: skip


def titles() -> dict[str, str]:
    return {
        CHOSEN: "☑",
        "name": _("name"),
        "type": _("type"),
        "shape": _("shape"),
        "parameters": _("params"),
        "mac_share": _("MACs"),
        "quant_enable": _("quant"),
        "retrain_enable": _("train"),
        "channel_wise": _("per ch."),
        "act_algo": _("act"),
        "wts_algo": _("wts"),
        "act_bits": _("act b"),
        "wts_bits": _("wts b"),
        "dmq": "DMQ",
        "prune_enable": _("prune"),
        RATIO: _("ratio"),
        "error": "1−cos",
        "sqnr": "SQNR",
        "prune_sensitivity": _("prune sens."),
        "state": _("state"),
        "reason": _("why not"),
        GROUP: _("module"),
    }


def tooltips() -> dict[str, str]:
    """What a short title stands for."""
    return {
        CHOSEN: _("selected"),
        "parameters": _("weights and biases"),
        "mac_share": _("share of the multiply-accumulates"),
        "quant_enable": _("quantise the layer"),
        "retrain_enable": _("train the layer with quantisation in the loop"),
        "channel_wise": _("a weight scale for each output channel"),
        "act_algo": _("how the range of the activations is found"),
        "wts_algo": _("how the weights are rounded"),
        "act_bits": _("bits of the activations"),
        "wts_bits": _("bits of the weights"),
        "dmq": _("how far channels are balanced between activations and weights"),
        "prune_enable": _("let the layer lose channels"),
        RATIO: _("share of the channels to remove"),
        "error": _("error of the layer's output: 1 − cosine similarity"),
        "sqnr": _("signal to quantisation noise ratio of the layer's output"),
        "prune_sensitivity": _("what removing a channel costs, on average"),
        "reason": _("why a layer stays float, or keeps all its channels"),
    }


WIDTHS = {
    CHOSEN: 38, "name": 184, "type": 84, "shape": 86, "parameters": 66, "mac_share": 60,
    "quant_enable": 58, "retrain_enable": 54, "channel_wise": 64, "act_algo": 62, "wts_algo": 56,
    "act_bits": 50, "wts_bits": 52, "dmq": 54, "prune_enable": 56, RATIO: 54,
    "error": 78, "sqnr": 70, "prune_sensitivity": 122, "state": 116, "reason": 150,
}  # fmt: skip

ALIGN = dict.fromkeys((*TICKS, *MENUS), "center") | dict.fromkeys(
    ("parameters", "mac_share", RATIO, "error", "sqnr", "prune_sensitivity"), "right"
)


def display_frame(
    shown: pd.DataFrame,
    threshold: float,
    selected: Collection[str],
    whole: Mapping[str, str],
    *,
    module: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """The table as text and ticks, in the order shown, with a fresh row index.

    ``whole``: why layers keep all their channels. ``module``: layer to the module that it is shown
    under; None: they are not grouped.
    """
    if not len(shown):
        # Tabulator chooses how to show a column by its type, once: an empty table needs them too.
        kinds = {**dict.fromkeys((CHOSEN, *TICKS), bool), **dict.fromkeys(BITS, np.int64)}
        names = (*WIDTHS, GROUP)
        return pd.DataFrame({c: pd.Series(dtype=kinds.get(c, object)) for c in names})
    words = {
        "quantised": _("quantised"),
        "worse": _("below the line"),
        "skipped": _("stays float"),
        "ineligible": _("cannot be"),
    }
    # The icon of a pinned layer says what it is now, the word what every search makes of it.
    held = {"quantised": _("pinned: quant."), "float": _("pinned: float")}
    states = bar_states(shown, threshold)
    chosen = set(selected)
    frame = {
        CHOSEN: np.array([name in chosen for name in shown["name"]], dtype=bool),
        "name": shown["name"].to_numpy(dtype=object),
        "type": shown["type"].to_numpy(dtype=object),
        "shape": shown["shape"].to_numpy(dtype=object),
        "parameters": [formats.count(value) for value in shown["parameters"].tolist()],
        "mac_share": [f"{100 * share:.1f} %" for share in shown["mac_share"].tolist()],
        "quant_enable": shown["quant_enable"].to_numpy(dtype=bool),
        "retrain_enable": shown["retrain_enable"].to_numpy(dtype=bool),
        "channel_wise": shown["channel_wise"].to_numpy(dtype=bool),
        "act_algo": [SHORT.get(x, x) for x in shown["act_algo"]],
        "wts_algo": [SHORT.get(x, x) for x in shown["wts_algo"]],
        "act_bits": shown["act_bits"].to_numpy(),
        "wts_bits": shown["wts_bits"].to_numpy(),
        "dmq": [f"{value:g}" if value else NO_DMQ for value in shown["dmq"].tolist()],
        "prune_enable": shown["prune_enable"].to_numpy(dtype=bool),
        # Objects, as a ratio that was edited is a number until it is shown as text again.
        RATIO: pd.Series([f"{ratio:.2f}" for ratio in shown[RATIO].tolist()], dtype=object),
        "error": [
            f"{error:.2e}" if math.isfinite(error) else formats.UNKNOWN
            for error in shown["error"].tolist()
        ],
        "sqnr": [
            f"{sqnr:.1f} dB" if math.isfinite(sqnr) else formats.UNKNOWN
            for sqnr in shown["sqnr"].tolist()
        ],
        "prune_sensitivity": [formats.exact(value) for value in shown["prune_sensitivity"]],
        "state": [
            f"{STATE_ICONS[state]} {words.get(state) or held[pin]}"
            for state, pin in zip(states, shown["pin"].tolist(), strict=True)
        ],
        "reason": [
            layer_reason(said(reason), said(whole.get(name, "")))
            for name, reason in zip(shown["name"].tolist(), shown["reason"].tolist(), strict=True)
        ],
        GROUP: [
            (module[name] or _("top level")) if module else "" for name in shown["name"].tolist()
        ],
    }
    return pd.DataFrame(frame)


def menu(column: str) -> dict[str, Any]:
    """Label to value of a column's menu."""
    if column == "retrain_enable":
        return {_("train"): True, _("do not train"): False}
    if column == "prune_enable":
        return {_("prune"): True, _("keep all channels"): False}
    if column == RATIO:
        return {f"{ratio:g}": ratio for ratio in RATIOS}
    if column == "dmq":
        return {NO_DMQ: 0.0, **{f"{strength:g}": strength for strength in STRENGTHS}}
    return {SHORT.get(str(value), str(value)): value for value in OPTIONS[column]}


def tick(on: str, off: str, label: str, never: str = "") -> JSCode:
    """Tabulator's formatter of a boolean: a check box, ``label`` is its name for screen readers.

    ``never``: why no box of the column can be ticked.
    """
    texts = ", ".join(json.dumps(text) for text in (on, off, label, never))
    return JSCode(f"(cell) => (({_TICK})(cell, {texts}))")


def changed_cells(old: pd.DataFrame, new: pd.DataFrame) -> dict[str, list[tuple[int, Any]]] | None:
    """Cells in which two frames of the same layers differ; None if the rows are others."""
    if len(old) != len(new) or not np.array_equal(old["name"].to_numpy(), new["name"].to_numpy()):
        return None
    found: dict[str, list[tuple[int, Any]]] = {}
    for column in new.columns:
        before, after = old[column].to_numpy(), new[column].to_numpy()
        rows = np.flatnonzero(before != after)
        if rows.size:
            found[column] = [(int(row), _plain(after[row])) for row in rows]
    return found


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


class LayerTable(View):
    """A click on a tick toggles it; bits have a menu; the box on the left selects."""

    def __init__(self, session: Session, window: WindowState) -> None:
        super().__init__(session, window, LAYERS_TAB)
        editors: dict[str, Any] = dict.fromkeys(WIDTHS)
        for column in MENUS:
            values = list(OPTIONS[column]) if column in BITS else list(menu(column))
            editors[column] = {"type": "list", "values": values}
        editors[RATIO] = {"type": "number", "min": 0.01, "max": 0.99, "step": 0.05}
        self._whole = WholeLayers(session)
        ticks = {c: tick("✓", "·", titles()[c]) for c in TICKS}
        refusal = session.project.source.no_training
        if refusal is not None:
            never = error_text(refusal, where=False)
            ticks["retrain_enable"] = tick("✓", "—", titles()["retrain_enable"], never)
        self.table = pn.widgets.Tabulator(
            self._frame(),
            show_index=False,
            pagination=None,
            selectable=False,
            disabled=False,
            editors=editors,
            titles=titles(),
            header_tooltips=tooltips(),
            widths=WIDTHS,
            text_align=ALIGN,
            header_align=ALIGN,
            formatters=ticks | {CHOSEN: tick("☑", "☐", _("select")), "name": WHOLE_NAME},
            layout="fit_data_stretch",
            theme="materialize",
            configuration={**TABLE, "groupHeader": JSCode(_GROUP)},
            hidden_columns=[GROUP],
            groupby=self._groupby(),
            sizing_mode="stretch_width",
            height=312,
            margin=0,
            stylesheets=[TABLE_CSS, AS_LONG_AS_THE_WINDOW],
        )
        self.table.on_click(self._clicked)
        self.table.on_edit(self._edited)
        self.watch(session, self.update, "layers", "pruning")
        self.watch(
            window,
            self.update,
            "quantity", "order", "threshold", "pattern", "type", "selected", "grouped",
        )  # fmt: skip

    def _frame(self) -> pd.DataFrame:
        shown = shown_layers(self.session.layers, self.window)
        return display_frame(
            shown,
            self.window.threshold,
            self.window.selected,
            self._whole.reasons(),
            module=modules(self.session.layers["name"].tolist()) if self.window.grouped else None,
        )

    def _groupby(self) -> list[str]:
        return [GROUP] if self.window.grouped else []

    def update(self) -> None:
        frame = self._frame()
        if self.table.groupby != self._groupby():
            self.table.param.update(value=frame, groupby=self._groupby())
            return
        cells = changed_cells(self.table.value, frame)
        if cells is None or sum(len(rows) for rows in cells.values()) > MOST_PATCHED:
            self.table.value = frame
        elif cells:
            self.table.patch(cells)

    def _clicked(self, event: Any) -> None:
        if event.column not in (CHOSEN, "name", *TICKS):
            return
        name = str(self.table.value["name"].iloc[event.row])
        if event.column == "name":
            self.inspect(name)
            return
        if event.column == CHOSEN:
            chosen = self.window.selected
            self.window.selected = (
                tuple(other for other in chosen if other != name)
                if name in chosen
                else (*chosen, name)
            )
        else:
            if self.act(lambda: self.session.toggle(name, event.column)):
                self.window.notice = ""

    def inspect(self, name: str) -> None:
        """Open a layer in the Inspect tab; one never looked at is compared at once."""
        session = self.session
        layers = session.layers
        if not layers["eligible"].iloc[session.row(name)]:
            self.window.notice = f"{name}: {said(layers['reason'].iloc[session.row(name)])}"
            return
        self.window.param.update(inspected=name, tab=INSPECT_TAB, notice="")
        idle = session.job is None or not session.job.active
        if idle and name not in session.inspected and not session.read_only:
            self.act(lambda: session.inspect(name, wait=False))

    def _edited(self, event: Any) -> None:
        if event.column not in (*MENUS, RATIO):
            return
        name = str(self.table.value["name"].iloc[event.row])
        value = menu(event.column).get(str(event.value), event.value)
        if self.act(lambda: self.session.set_option([name], event.column, value)):
            self.window.notice = ""
            self.update()  # a ratio is shown as text, and is a number when it was edited
        else:
            self.table.value = self._frame()  # show again what really holds

    def __panel__(self) -> Any:
        return self.table
