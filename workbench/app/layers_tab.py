"""The heart of the page: chart above, table below, and the tools to choose and change layers."""

from __future__ import annotations

from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app import rows
from workbench.app.html import ThemedHTML, escape
from workbench.app.i18n import _, ngettext
from workbench.app.job_notice import JobNotice
from workbench.app.layer_chart import LayerChart
from workbench.app.layer_table import LayerTable, menu
from workbench.app.style import aligned
from workbench.app.threshold_count import ThresholdCount
from workbench.app.variants_bar import VariantsBar
from workbench.app.view import View
from workbench.app.what_if import WhatIf
from workbench.app.window import LAYERS_TAB, WindowState
from workbench.charts.sensitivity import QUANTITIES, below_threshold
from workbench.studio.session import Session


class LayersTab(View):
    """Toolbar, chart, selection bar, table."""

    def __init__(self, session: Session, window: WindowState) -> None:
        super().__init__(session, window, LAYERS_TAB)
        self.chart = LayerChart(session, window)
        self.table = LayerTable(session, window)
        self.state = JobNotice(session, window, ("open", "analyse", "evaluate"))
        self.variants = VariantsBar(session, window, LAYERS_TAB)
        self.what_if = WhatIf(session, window)
        self.parts = [self.chart, self.table, self.state, self.variants, self.what_if]
        small = {"size": "small", "margin": 0}
        self.quantity = pmui.Select.from_param(
            window.param.quantity,
            label=_("chart shows"),
            options={_(spec.title): name for name, spec in QUANTITIES.items()},
            width=225,
            **small,
        )
        self.order = pmui.Select.from_param(
            window.param.order,
            label=_("order"),
            options={_("execution"): "execution", _("worst first"): "sorted"},
            width=125,
            **small,
        )
        self.threshold = pmui.FloatInput(
            value=window.threshold,
            label=_("threshold cos"),
            step=0.001,
            start=-1.0,
            end=1.0,
            format="0.[00000]",
            width=125,
            **small,
        )
        self.count = ThresholdCount(self.skip_below, margin=0)
        self.pattern = pmui.TextInput(
            label=_("filter name (regex)"), value=window.pattern, width=160, **small
        )
        self.type = pmui.Select(label=_("type"), options={_("all"): ""}, width=120, **small)
        self.worst_k = pmui.IntInput(label=_("k"), value=3, start=1, end=10_000, width=92, **small)
        window.keep("layers.k", self.worst_k)
        self.parameters = pmui.IntInput(
            label=_("N"), value=1000, start=1, end=1_000_000_000, step=1000, width=112, **small
        )
        self.grouped = pmui.Switch.from_param(
            window.param.grouped,
            label=_("by module"),
            description="",
            **small,
        )
        self.chosen = ThemedHTML(
            width=80,
            sizing_mode=None,
            align="center",
        )
        self.hint = ThemedHTML(visible=False, margin=(0, 0, 6, 0))
        self.presets = [
            self._button(_("worst k"), lambda: self.select(rows.worst(self.shown, self.k))),
            self._button(
                _("below line"), lambda: self.select(rows.below(self.shown, window.threshold))
            ),
            self._button(_("first + last"), lambda: self.select(rows.first_and_last(self.shown))),
            self._button(_("depthwise"), lambda: self.select(self._depthwise())),
            self._button(
                _("under N parameters"),
                lambda: self.select(rows.small(self.shown, int(self.parameters.value or 1))),
            ),
            self._button(_("all shown"), lambda: self.select(tuple(self.shown["name"]))),
            self._button(_("none"), lambda: self.select(())),
        ]
        self.quantise = self._button(_("Quantise"), lambda: self.set_selected(True), "outlined")
        self.skip = self._button(_("Skip"), lambda: self.set_selected(False), "outlined")
        self.bulk: list[Any] = []
        self.menus = aligned(margin=0)
        self.watch(self.threshold, self._typed_threshold, "value")
        self.watch(self.pattern, self._typed_pattern, "value")
        self.watch(self.type, self._chose_type, "value")
        self.watch(session, self.update, "layers")
        self.watch(session, self.update_hint, "job")
        self.watch(window, self.update, "threshold", "pattern", "type", "selected")
        self.update()

    def _button(self, label: str, action: Any, variant: str = "text") -> Any:
        button = pmui.Button(label=label, variant=variant, size="small", margin=0)
        self.press(button, lambda: action())
        return button

    def _fill_menus(self) -> None:
        """Only when layers are selected for the first time: the first paint is dear."""
        trainable = self.session.project.source.trainable
        inspect = self._button(
            _("Inspect"), lambda: self.table.inspect(self.window.selected[0]), "outlined"
        )
        self.bulk = [
            inspect,
            *([self._menu(_("train"), "retrain_enable")] if trainable else []),
            self._menu(_("act"), "act_algo"),
            self._menu(_("wts"), "wts_algo"),
            self._menu(_("act bits"), "act_bits"),
            self._menu(_("wts bits"), "wts_bits"),
            self._menu("DMQ", "dmq"),
            self._menu(_("prune"), "prune_enable"),
            self._menu(_("prune ratio"), "prune_ratio"),
        ]
        self.menus.objects = self.bulk

    def _menu(self, label: str, column: str) -> Any:
        """A menu that sets ``column`` of all selected layers."""
        values = menu(column)
        chooser = pmui.MenuButton(
            label=label,
            items=[{"label": text} for text in values],
            variant="text",
            size="small",
            margin=0,
        )

        def chosen(item: Any) -> None:
            self.window.notice = ""
            value, names = values[item["label"]], self.window.selected
            self.act(lambda: self.session.set_option(names, column, value))

        chooser.on_click(chosen)
        return chooser

    @property
    def shown(self) -> Any:
        return rows.shown_layers(self.session.layers, self.window)

    @property
    def k(self) -> int:
        return int(self.worst_k.value or 1)

    def _depthwise(self) -> tuple[str, ...]:
        layers = self.session.project.store.layers()
        grouped = [layer.name for layer in layers if layer.depthwise]
        return rows.depthwise(self.shown, grouped)

    def select(self, names: tuple[str, ...]) -> None:
        self.window.selected = names

    def set_selected(self, value: bool) -> None:
        table = self.session.layers
        chosen = set(self.window.selected)
        names = list(table[table["eligible"] & table["name"].isin(chosen)]["name"])
        if names and self.act(lambda: self.session.set_flag(names, value)):
            self.window.notice = ""

    def skip_below(self) -> None:
        names = below_threshold(self.shown, self.window.threshold)
        if names:
            self.act(lambda: self.session.set_flag(names, False))

    def _typed_threshold(self) -> None:
        if self.threshold.value is not None:
            self.window.threshold = min(1.0, max(-1.0, float(self.threshold.value)))

    def _typed_pattern(self) -> None:
        pattern = self.pattern.value or ""
        valid = self.act(lambda: rows.compile_pattern(pattern))
        self.pattern.error_state = not valid
        if valid:
            self.window.notice = ""
        self.window.pattern = pattern

    def _chose_type(self) -> None:
        self.window.type = self.type.value or ""

    def update(self) -> None:
        window, layers = self.window, self.session.layers
        if self.threshold.value != window.threshold:
            self.threshold.value = window.threshold
        shown = self.shown
        count = len(below_threshold(shown, window.threshold)) if len(shown) else 0
        self.count.param.update(threshold=window.threshold, count=count)
        kinds = list(dict.fromkeys(layers["type"])) if len(layers) else []
        options = {_("all"): "", **{kind: kind for kind in kinds}}
        if self.type.options != options:
            self.type.param.update(
                options=options, value=window.type if window.type in kinds else ""
            )
        chosen = len(window.selected)
        text = ngettext("{n} selected", "{n} selected", chosen).format(n=chosen)
        self.chosen.fill(f'<span role="status">{escape(text)}</span>')
        if chosen and not self.bulk:
            self._fill_menus()
        for control in (self.quantise, self.skip, *self.bulk):
            control.disabled = chosen == 0
        self.update_hint()

    def update_hint(self) -> None:
        """What to do next, where nothing is to be seen yet."""
        layers, job, text = self.session.layers, self.session.job, ""
        if len(layers) and not len(self.shown):
            text = _("No layer matches the filter.")
        elif len(layers) and not rows.any_eligible(layers):
            text = _("No layer of this model can be quantised: the tab Model says why.")
        elif len(layers) and layers["cosine"].isna().all():
            measuring = job is not None and job.active and job.kind == "analyse"
            text = (
                _("The ranges of all layers are found first; then their bars grow one by one.")
                if measuring
                else _(
                    "Nothing is measured yet. Press Analyse: it calibrates with the project's data "
                    "and measures how much each layer suffers. Bars and ticks already toggle "
                    "layers."
                )
            )
        self.hint.fill(f'<div class="wb-info" role="status">{escape(text)}</div>' if text else "")
        self.hint.visible = bool(text)

    def __panel__(self) -> Any:
        return pn.Column(
            self.state,
            self.hint,
            aligned(
                self.quantity,
                self.order,
                self.threshold,
                self.count,
                self.variants.opener,
                self.what_if,
                margin=(10, 0, 4, 0),
                sizing_mode="stretch_width",
            ),
            self.variants,
            self.chart,
            aligned(
                self.pattern,
                self.type,
                pn.pane.HTML(
                    f'<span style="opacity:.65;font-size:12.5px">{escape(_("select"))}</span>',
                    margin=0,
                    align="center",
                ),
                *self.presets[:1],
                self.worst_k,
                *self.presets[1:5],
                self.parameters,
                *self.presets[5:],
                self.grouped,
                margin=(4, 0, 4, 0),
            ),
            aligned(
                self.chosen,
                self.quantise,
                self.skip,
                self.menus,
                margin=(0, 0, 6, 0),
            ),
            self.table,
            sizing_mode="stretch_width",
            margin=(0, 14, 10, 14),
        )
