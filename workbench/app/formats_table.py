"""Layers by number formats: weight errors, output errors, outliers, and how each is quantised."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import pandas as pd
import panel as pn
import param

from workbench.app.i18n import _
from workbench.app.layer_table import CHOSEN, TABLE, WHOLE_NAME, changed_cells, tick
from workbench.app.style import TABLE_CSS
from workbench.app.view import View
from workbench.app.window import FORMATS_TAB, WindowState
from workbench.charts import formats
from workbench.engine.analysis.module_formats import WAYS, WEIGHTS
from workbench.studio.format_choices import FLOAT
from workbench.studio.formats_state import format_columns
from workbench.studio.session import Session

WAY = "way"
HEIGHT = 262
WIDTHS = {
    CHOSEN: 38, "name": 208, WAY: 190, **dict.fromkeys(WEIGHTS, 60), "int4 g32": 76, "int4 g64": 76,
    "hifloat8": 68, "minmax_db": 74, "smoothquant_db": 84, "largest": 72,
}  # fmt: skip
ALIGN = {key: "right" for key in WIDTHS if key not in (CHOSEN, "name", WAY)}
_CSS = """
.tabulator-row .tabulator-cell[tabulator-field="way"] { cursor: pointer; }
.tabulator-row .tabulator-cell[tabulator-field="way"]:hover { text-decoration: underline; }
"""


def titles() -> dict[str, str]:
    """Column headers; the formats head their own columns."""
    return {
        CHOSEN: "☑", "name": _("layer"), WAY: _("quantise as"), "minmax_db": _("W8A8"),
        "smoothquant_db": _("smoothed"), "largest": _("outlier"),
    }  # fmt: skip


def percent(value: float) -> str:
    """A relative error: ``0.53 %``, ``9.1 %``."""
    if not math.isfinite(value):
        return formats.UNKNOWN
    return f"{100 * value:.2f} %" if value < 0.01 else f"{100 * value:.1f} %"


def decibel(value: float) -> str:
    return f"{value:.1f} dB" if math.isfinite(value) else formats.UNKNOWN


def times(value: float) -> str:
    return f"{value:.1f}×" if math.isfinite(value) else formats.UNKNOWN


def display_frame(
    table: pd.DataFrame, ways: dict[str, str], chosen: Collection[str]
) -> pd.DataFrame:
    """The table as it is shown; every layer a row, in the model's order."""
    shown: dict[str, Any] = {
        CHOSEN: [name in chosen for name in table["name"]],
        "name": table["name"].tolist(),
        WAY: [ways[name] for name in table["name"]],
    }
    measured = format_columns(table)
    for key in WEIGHTS:
        known = table[key].tolist() if key in measured else [math.nan] * len(table)
        shown[key] = [percent(value) for value in known]
    shown["minmax_db"] = [decibel(value) for value in table["minmax_db"]]
    shown["smoothquant_db"] = [decibel(value) for value in table["smoothquant_db"]]
    shown["largest"] = [times(value) for value in table["largest"]]
    # An empty column of no type would be shown as numbers for ever after.
    frame = pd.DataFrame({key: pd.Series(value, dtype=object) for key, value in shown.items()})
    return frame.astype({CHOSEN: bool})


class FormatsTable(View):
    """A click on a name looks at the layer, on its way opens a menu; the box selects.

    ``chosen`` are the ticked layers; ``layer`` is the one that is looked at.
    """

    chosen = param.Parameter(default=())
    layer = param.String(default="")

    def __init__(self, session: Session, window: WindowState, changed: Callable[[], None]) -> None:
        super().__init__(session, window, FORMATS_TAB)
        self._changed = changed
        editors: dict[str, Any] = dict.fromkeys(WIDTHS)
        editors[WAY] = {"type": "list", "values": [FLOAT, *WAYS]}
        self.table = pn.widgets.Tabulator(
            self._frame(),
            show_index=False,
            pagination=None,
            selectable=False,
            disabled=False,
            editors=editors,
            titles=titles(),
            widths=WIDTHS,
            text_align=ALIGN,
            header_align=ALIGN,
            formatters={CHOSEN: tick("☑", "☐", _("select")), "name": WHOLE_NAME},
            layout="fit_data_stretch",
            theme="materialize",
            configuration=TABLE,
            sizing_mode="stretch_width",
            height=HEIGHT,
            margin=0,
            stylesheets=[TABLE_CSS, _CSS],
        )
        self.table.on_click(self._clicked)
        self.table.on_edit(self._edited)
        self.watch(session, self.update, "formats", "ways")

    def _frame(self) -> pd.DataFrame:
        return display_frame(self.session.formats, self.session.layer_ways(), self.chosen)

    def update(self) -> None:
        frame = self._frame()
        names = frame["name"].tolist()
        self.chosen = tuple(name for name in self.chosen if name in names)
        if self.layer not in names:
            self.layer = self._first(names)
        cells = changed_cells(self.table.value, frame)
        if cells is None:
            self.table.value = frame
        elif cells:
            self.table.patch(cells)

    def _first(self, names: list[str]) -> str:
        """The layer with the largest outliers, where any are known."""
        largest = self.session.formats["largest"]
        return names[int(largest.idxmax())] if largest.notna().any() else "".join(names[:1])

    def select(self, names: Collection[str]) -> None:
        """Tick exactly these layers."""
        self.chosen = tuple(names)
        self.update()
        self._changed()

    def _clicked(self, event: Any) -> None:
        if event.column not in (CHOSEN, "name"):
            return
        name = str(self.table.value["name"].iloc[event.row])
        if event.column == "name":
            self.layer = name
            self._changed()
        elif name in self.chosen:
            self.select([other for other in self.chosen if other != name])
        else:
            self.select([*self.chosen, name])

    def _edited(self, event: Any) -> None:
        if event.column != WAY:
            return
        name = str(self.table.value["name"].iloc[event.row])
        if self.act(lambda: self.session.choose_way([name], str(event.value))):
            self.window.notice = ""
        else:
            self.table.value = self._frame()  # show again what really holds

    def __panel__(self) -> Any:
        return self.table
