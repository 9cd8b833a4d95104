"""All trials, exports and trainings ever run: found again, compared, opened, deleted for good."""

from __future__ import annotations

from typing import Any

import pandas as pd
import panel as pn
import panel_material_ui as pmui

from workbench.app.history_table import (
    SORTS,
    WIDTHS,
    chosen_rows,
    confirmation,
    history_frame,
    job_name,
    row_details,
    row_kinds,
    row_name,
)
from workbench.app.html import ThemedHTML, escape, notice
from workbench.app.i18n import _
from workbench.app.style import TABLE_CSS, aligned
from workbench.app.trial_table import comparison
from workbench.app.view import View
from workbench.app.window import HISTORY_TAB, LAYERS_TAB, WindowState
from workbench.charts import formats
from workbench.engine.errors import WorkbenchError
from workbench.studio.history_control import knows_configuration
from workbench.studio.session import Session

ALIGN = dict.fromkeys(("metric", "loss", "size", "bops", "n_float", "seconds"), "right")


class HistoryTab(View):
    """``keys`` are the rows that are chosen, in the order of time."""

    def __init__(self, session: Session, window: WindowState) -> None:
        super().__init__(session, window, HISTORY_TAB)
        self.history = session.history()
        self.shown = self.history.iloc[:0]
        self.kind = self._menu(_("show"), {_("everything"): ""}, "", 160)
        self.job = self._menu(_("made by"), {_("all jobs"): 0}, 0, 210)
        titles = (_("newest first"), _("best metric"), _("smallest loss"), _("smallest size"),
                  _("fewest bit-operations"))  # fmt: skip
        self.sort = self._menu(_("sort by"), dict(zip(titles, SORTS, strict=True)), SORTS[0], 180)
        self.text = pmui.TextInput(
            label=_("contains"), placeholder=_("layer, file, method …"), width=190, size="small",
            margin=0,
        )  # fmt: skip
        window.keep("history.sort", self.sort)
        window.keep("history.text", self.text)
        self.use = self._button(_("Open in Layers"), self.open_row)
        self.compare = self._button(_("Compare"), self.show_comparison)
        self.remove = self._button(_("Delete …"), self.ask, color="error")
        self.hint = ThemedHTML(sizing_mode=None, align="center")
        nothing = _(
            "Nothing has been run yet. Analyse, Auto-calibrate, Train and Export leave their "
            "results here, for as long as you like."
        )
        self.empty = ThemedHTML(notice(nothing), margin=(8, 0))
        self.table = pn.widgets.Tabulator(
            history_frame(self.shown, ""),
            show_index=False,
            pagination=None,
            disabled=True,
            selectable="toggle",
            titles={
                "what": _("row"), "kind": _("kind"), "of": _("made by"), "when": _("when"),
                "state": _("state"), "metric": _("metric"), "loss": _("loss"), "size": _("size"),
                "bops": _("bit-op."), "n_float": _("float layers"), "seconds": _("time"),
                "details": _("details"),
            },
            widths=WIDTHS,
            text_align=ALIGN,
            header_align=ALIGN,
            layout="fit_data_stretch",
            theme="materialize",
            configuration={"columnDefaults": {"headerSort": False}, "rowHeight": 28},
            sizing_mode="stretch_width",
            height=300,
            margin=0,
            stylesheets=[TABLE_CSS],
        )  # fmt: skip
        self.compared = ThemedHTML(visible=False, margin=(12, 0, 0, 0))
        self.detail = ThemedHTML(margin=(12, 0, 0, 0))
        self.question = ThemedHTML()
        self.confirm = pmui.Button(
            label=_("Delete for good"), color="error", variant="contained", size="small"
        )
        self.keep = pmui.Button(label=_("Keep"), variant="outlined", size="small")
        self.press(self.confirm, self.delete)
        self.press(self.keep, self.close)
        self.dialog = pmui.Dialog(
            self.question,
            pn.Row(self.keep, self.confirm, margin=0),
            title=_("Delete?"), title_variant="h5", width_option="sm",
        )  # fmt: skip
        self.watch(self.table, self._selected, "selection")
        for control in (self.kind, self.job, self.sort, self.text):
            self.watch(control, self.refill, "value")
        self.watch(
            session, self.reload,
            "trials", "job", "exports", "training", "quantized", "shrunk", "deletions", "summary",
        )  # fmt: skip
        self.reload()

    def _menu(self, label: str, options: dict[str, Any], value: Any, width: int) -> Any:
        return pmui.Select(
            label=label, options=options, value=value, width=width, size="small", margin=0
        )

    def _button(self, label: str, action: Any, **look: Any) -> Any:
        button = pmui.Button(
            label=label, size="small", variant="outlined", margin=0, disabled=True, **look
        )
        self.press(button, lambda: action())
        return button

    @property
    def keys(self) -> tuple[str, ...]:
        chosen = {
            str(self.shown["key"].iloc[row])
            for row in self.table.selection
            if 0 <= row < len(self.shown)
        }
        return tuple(key for key in self.history["key"] if key in chosen)

    def reload(self) -> None:
        """Read the history anew and offer the kinds and jobs that there are."""
        self.history = self.session.history()
        named = row_kinds()
        kinds = list(dict.fromkeys(self.history["kind"]))
        self._offer(
            self.kind, {_("everything"): "", **{named.get(kind, kind): kind for kind in kinds}}, ""
        )
        jobs = dict(zip(self.history["job"].tolist(), self.history["job_kind"], strict=True))
        self._offer(
            self.job,
            {_("all jobs"): 0, **{job_name(kind, job): job for job, kind in jobs.items()}},
            0,
        )
        self.refill()

    @staticmethod
    def _offer(menu: Any, options: dict[str, Any], everything: Any) -> None:
        if menu.options != options:
            known = menu.value in options.values()
            menu.param.update(options=options, value=menu.value if known else everything)

    def refill(self) -> None:
        """Show what the filters leave; rows that were chosen stay so."""
        chosen = tuple(self.window.rows)
        self.shown = chosen_rows(
            self.history, kind=self.kind.value, job=self.job.value,
            text=self.text.value or "", sort=self.sort.value,
        )  # fmt: skip
        frame = history_frame(self.shown, self.session.summary.metric_name)
        if not frame.equals(self.table.value):
            self.table.param.update(value=frame, selection=[])
        self.choose(chosen)
        self.empty.visible = not len(self.history)
        self.table.visible = bool(len(self.history))
        self.update()

    def choose(self, keys: tuple[str, ...]) -> None:
        places = [i for i, key in enumerate(self.shown["key"]) if key in keys]
        if sorted(self.table.selection) != places:
            self.table.selection = places

    def _selected(self) -> None:
        self.window.rows = self.keys
        self.update()

    def update(self) -> None:
        keys = self.keys
        rows = self._rows(keys)
        self.use.disabled = len(rows) != 1 or not knows_configuration(rows.iloc[0])
        self.compare.disabled = len(rows) != 2
        self.remove.disabled = not len(rows) or self.session.read_only
        if len(keys) != 2:
            self.compared.visible = False
        metric = self.session.summary.metric_name
        self.detail.fill(row_details(rows.iloc[0].to_dict(), metric) if len(rows) == 1 else "")
        self.hint.fill(f'<span class="wb-muted">{escape(self._hint(len(keys)))}</span>')

    def _hint(self, count: int) -> str:
        if len(self.history) and not len(self.shown):
            return _("No row is like this.")
        if not count:
            return _("Choose a row, or two to compare.") if len(self.history) else ""
        return _("Choose a second one to compare.") if count == 1 else ""

    def _rows(self, keys: tuple[str, ...]) -> pd.DataFrame:
        return self.history[self.history["key"].isin(keys)]

    def open_row(self) -> None:
        if len(self.keys) == 1 and self.act(lambda: self.session.use_entry(self.keys[0])):
            self.window.tab = LAYERS_TAB

    def show_comparison(self) -> None:
        if len(self.keys) != 2:
            return
        try:
            table = self.session.compare_entries(*self.keys)
        except WorkbenchError as error:
            self.window.notice = str(error)
            return
        table.columns = [row_name(key) for key in table.columns]
        text = comparison(table, self.session.summary.metric_name)
        files = _file_comparison(self._rows(self.keys))
        self.compared.fill(f'<div style="display:flex;gap:48px">{text}{files}</div>')
        self.compared.visible = True

    def ask(self) -> None:
        """Say what would go, and ask."""
        keys = self.keys
        try:
            plan = self.session.deletion(keys)
        except WorkbenchError as error:
            self.window.notice = str(error)
            return
        self.question.fill(confirmation(len(keys), plan.files, plan.kept))
        self.dialog.open = True

    def close(self) -> None:
        self.dialog.open = False

    def delete(self) -> None:
        keys = self.keys
        self.close()
        self.table.selection = []
        self.act(lambda: self.session.delete(keys))

    def __panel__(self) -> Any:
        return pn.Column(
            aligned(self.kind, self.job, self.text, self.sort, margin=(10, 0, 6, 0)),
            aligned(self.use, self.compare, self.remove, self.hint, margin=(0, 0, 6, 0)),
            self.empty,
            self.table,
            self.compared,
            self.detail,
            self.dialog,
            sizing_mode="stretch_width",
            margin=(0, 14, 10, 14),
        )


def _file_comparison(rows: pd.DataFrame) -> str:
    """Files of two rows by their kind: bytes and latency; empty if neither wrote any."""
    files = [
        {str(file["kind"]): file for file in facts.get("files", ())} for facts in rows["facts"]
    ]
    kinds = list(dict.fromkeys(kind for own in files for kind in own))
    if not kinds:
        return ""
    lines = []
    for kind in kinds:
        cells = [own.get(kind) for own in files]
        shown = [_file_text(file) if file else formats.UNKNOWN for file in cells]
        lines.append(
            f"<tr><td>{escape(kind)}</td>" + "".join(f"<td>{escape(x)}</td>" for x in shown)
            + "</tr>"
        )  # fmt: skip
    heads = "".join(f"<th>{escape(row_name(key))}</th>" for key in rows["key"])
    return (
        f'<div><h2 class="wb">{escape(_("Files"))}</h2><table class="wb"><tr><td></td>{heads}</tr>'
        f"{''.join(lines)}</table></div>"
    )


def _file_text(file: dict[str, Any]) -> str:
    text = formats.size(file["bytes"])
    return text if file["latency_ms"] is None else f"{text} · {file['latency_ms']:.2f} ms"
