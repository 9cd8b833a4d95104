"""All trials of the project: filtered, compared two and two, opened in Layers, exported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import panel as pn
import panel_material_ui as pmui

from workbench.app.html import ThemedHTML, escape
from workbench.app.i18n import _, ngettext
from workbench.app.search_settings import SearchSettings
from workbench.app.style import TABLE_CSS, aligned
from workbench.app.view import View
from workbench.app.window import EXPORT_TAB, LAYERS_TAB, SEARCH_TAB, WindowState
from workbench.charts import formats
from workbench.charts.search import within_target
from workbench.charts.words import trial_kinds
from workbench.studio.session import Session

WIDTHS = {
    "trial": 54, "kind": 104, "metric": 74, "loss": 74, "target": 60, "n_float": 96, "size": 84,
    "bops": 96, "share": 104, "seconds": 66, "layers": 400,
}  # fmt: skip
ALIGN = dict.fromkeys(
    ("trial", "metric", "loss", "n_float", "size", "bops", "share", "seconds"), "right"
) | {"target": "center"}  # fmt: skip


def trial_frame(trials: pd.DataFrame, metric_name: str, target_loss: float) -> pd.DataFrame:
    """The trials as text, newest first."""
    names = trial_kinds()
    newest = trials.iloc[::-1]
    text = pd.Series(dtype=object)
    if not len(newest):  # Tabulator chooses how to show a column by its type, once
        numbers = {"trial": np.int64, "n_float": np.int64}
        return pd.DataFrame({c: text.astype(numbers.get(c, object)) for c in WIDTHS})
    return pd.DataFrame(
        {
            "trial": newest["trial"].to_numpy(),
            "kind": [names.get(str(kind), str(kind)) for kind in newest["kind"]],
            "metric": [formats.metric(value, metric_name) for value in newest["metric"].tolist()],
            "loss": [formats.loss(value, metric_name) for value in newest["loss"].tolist()],
            "target": ["✓" if ok else "✕" for ok in within_target(newest, target_loss)],
            "n_float": newest["n_float"].to_numpy(),
            "size": [formats.size(value) for value in newest["size"].tolist()],
            "bops": [formats.bit_operations(value) for value in newest["bops"].tolist()],
            "share": [
                _("known before") if cached else share_text(share)
                for share, cached in zip(newest["share"].tolist(), newest["cached"], strict=True)
            ],
            "seconds": [f"{seconds:.1f} s" for seconds in newest["seconds"].tolist()],
            "layers": [
                _("all") if kind == "float" else ", ".join(layers)
                for kind, layers in zip(newest["kind"], newest["float_layers"], strict=True)
            ],
        }
    )


def share_text(share: float) -> str:
    """``100 %``, ``12 %``, ``0.4 %``: a share of the samples."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


def comparison(table: pd.DataFrame, metric_name: str) -> str:
    """``Session.compare`` as HTML: figures side by side, then the layers that differ."""
    first, second = table.columns
    columns = (table.iloc[:, 0], table.iloc[:, 1])  # two columns may have one title
    shown: dict[str, tuple[str, Callable[[Any], str]]] = {
        "metric": (formats.metric_title(metric_name), lambda x: formats.metric(x, metric_name)),
        "predicted": (
            _("{metric}, predicted").format(metric=formats.metric_title(metric_name)),
            lambda x: "≈ " + formats.metric(x, metric_name),
        ),
        "loss": (_("loss"), lambda x: formats.loss(x, metric_name)),
        "size": (_("size"), formats.size),
        "bops": (_("bit-operations"), formats.bit_operations),
        "n_float": (_("float layers"), lambda x: f"{x:.0f}"),
        "share": (_("samples evaluated"), share_text),
        "seconds": (_("time"), lambda x: f"{x:.1f} s"),
    }
    lines = []
    for (what, name), a, b in zip(table.index, *columns, strict=True):
        if what == "figure":
            title, text = shown[name]
            cells = [formats.UNKNOWN if x != x else escape(text(x)) for x in (a, b)]
        else:
            title, cells = name, [escape(_layer_text(x)) for x in (a, b)]
        lines.append(
            f"<tr><td>{escape(title)}</td>" + "".join(f"<td>{x}</td>" for x in cells) + "</tr>"
        )
    differing = sum(what == "layer" for what, _name in table.index)
    head = _("No layer differs")
    if differing:
        head = ngettext("{n} layer differs", "{n} layers differ", differing).format(n=differing)
    return (
        f'<div role="region" aria-label="{escape(_("Comparison"))}"><h2 class="wb">'
        f"{escape(head)}</h2>"
        f'<table class="wb"><tr><td></td><th>{escape(_heading(first))}</th>'
        f"<th>{escape(_heading(second))}</th></tr>{''.join(lines)}</table></div>"
    )


def _heading(trial: Any) -> str:
    """A trial by its number; anything else is a title already."""
    return trial if isinstance(trial, str) else _("trial {number}").format(number=trial)


def _layer_text(text: str) -> str:
    """``quantised: wts_bits 4`` in words, with the columns' names as the Layers tab has them."""
    what, _colon, settings = text.partition(": ")
    words = {"float": "○ " + _("stays float"), "quantised": "● " + _("quantised")}
    names = {
        "act_bits": _("act bits"), "wts_bits": _("wts bits"), "act_algo": _("act"),
        "wts_algo": _("wts"), "channel_wise": _("per channel"), "dmq": "DMQ",
        "retrain_enable": _("train"), "prune_enable": _("prune"),
        "prune_ratio": _("prune ratio"), "way": _("quantise as"), "True": "✓", "False": "✕",
    }  # fmt: skip
    for column, name in names.items():
        settings = settings.replace(column, name)
    return f"{words[what]}: {settings}" if settings else words[what]


class TrialTable(View):
    """``chosen`` are the numbers of the selected trials, at most two."""

    def __init__(self, session: Session, window: WindowState, settings: SearchSettings) -> None:
        super().__init__(session, window, SEARCH_TAB)
        self.settings = settings
        self.kind = pmui.Select(
            label=_("show"),
            options={_("all kinds"): "", **{v: k for k, v in trial_kinds().items()}},
            value="", width=150, size="small", margin=0,
        )  # fmt: skip
        self.table = pn.widgets.Tabulator(
            self._frame(),
            show_index=False,
            pagination=None,
            disabled=True,
            selectable="toggle",
            titles={
                "trial": _("trial"), "kind": _("kind"), "metric": _("metric"), "loss": _("loss"),
                "target": _("target"), "n_float": _("float layers"), "size": _("size"),
                "bops": _("bit-op."), "share": _("samples"), "seconds": _("time"),
                "layers": _("which"),
            },
            widths=WIDTHS,
            text_align=ALIGN,
            header_align=ALIGN,
            layout="fit_data_stretch",
            theme="materialize",
            configuration={"columnDefaults": {"headerSort": False}, "rowHeight": 28},
            sizing_mode="stretch_width",
            height=230,
            margin=0,
            stylesheets=[TABLE_CSS],
        )  # fmt: skip
        self.use = self._button(_("Open in Layers"), self.use_trial)
        self.export = self._button(_("Export this trial"), self.export_trial)
        self.compare = self._button(_("Compare"), self.show_comparison)
        self.hint = ThemedHTML(sizing_mode=None, align="center")
        self.compared = ThemedHTML(visible=False, margin=(4, 0, 12, 0))
        self.choose(tuple(window.trials))
        self.watch(self.table, self._selected, "selection")
        self.watch(self.kind, self.refill, "value")
        self.watch(session, self.refill, "trials", "summary")
        self.watch(session, self.update, "job")
        self.watch(settings, self.refill, "max_loss_percent")
        self.update()

    def _button(self, label: str, action: Any) -> Any:
        button = pmui.Button(label=label, size="small", variant="outlined", margin=0, disabled=True)
        self.press(button, lambda: action())
        return button

    def _frame(self) -> pd.DataFrame:
        trials = self.session.trials
        if self.kind.value:
            trials = trials[trials["kind"] == self.kind.value]
        target = float(self.settings.max_loss_percent) / 100
        return trial_frame(trials, self.session.summary.metric_name, target)

    @property
    def chosen(self) -> tuple[int, ...]:
        """In the order of the trials."""
        numbers = self.table.value["trial"]
        rows = [row for row in self.table.selection if 0 <= row < len(numbers)]
        return tuple(sorted(int(numbers.iloc[row]) for row in rows))

    def choose(self, trials: tuple[int, ...]) -> None:
        numbers = self.table.value["trial"].tolist()
        self.table.selection = [i for i, number in enumerate(numbers) if number in trials]

    def refill(self) -> None:
        """Show new trials; those that were chosen stay so."""
        frame = self._frame()
        if not frame.equals(self.table.value):
            chosen = tuple(self.window.trials)
            self.table.value = frame
            self.choose(chosen)

    def _selected(self) -> None:
        self.update()
        self.window.trials = self.chosen

    def update(self) -> None:
        if len(self.table.selection) > 2:  # the newest two clicks count
            self.table.selection = self.table.selection[-2:]
        count = len(self.chosen)
        job = self.session.job
        self.use.disabled = count != 1
        self.export.disabled = count != 1 or (job is not None and job.active)
        self.compare.disabled = count != 2
        text = (
            _("Choose a trial, or two to compare.") if count == 0
            else _("Choose a second one to compare.") if count == 1
            else ""
        )  # fmt: skip
        self.hint.fill(f'<span class="wb-muted">{escape(text)}</span>' if text else "")
        if count != 2:
            self.compared.visible = False

    def _take(self) -> bool:
        """Make the chosen trial the configuration, as one edit."""
        if len(self.chosen) != 1:
            return False
        return self.act(lambda: self.session.use_trial(self.chosen[0]))

    def use_trial(self) -> None:
        if self._take():
            self.window.tab = LAYERS_TAB

    def export_trial(self) -> None:
        if self._take() and self.act(lambda: self.session.export(wait=False)):
            self.window.tab = EXPORT_TAB

    def show_comparison(self) -> None:
        if len(self.chosen) != 2:
            return
        table = self.session.compare(*self.chosen)
        self.compared.fill(comparison(table, self.session.summary.metric_name))
        self.compared.visible = True

    def __panel__(self) -> Any:
        return pn.Column(
            aligned(
                pn.pane.HTML(
                    f'<b style="font-size:13px">{escape(_("Trials of this project"))}</b>',
                    margin=0,
                    align="center",
                ),
                self.kind,
                self.use,
                self.export,
                self.compare,
                self.hint,
                margin=(6, 0),
            ),
            self.compared,
            self.table,
            sizing_mode="stretch_width",
            margin=0,
        )
