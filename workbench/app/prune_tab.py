"""Channels that can go: how much each matters, what a plan leaves, and the smaller project."""

from __future__ import annotations

from functools import partial
from typing import Any

import panel as pn
import panel_material_ui as pmui
from panel.io import hold

from workbench.app.html import ThemedHTML, escape
from workbench.app.i18n import _, ngettext, said
from workbench.app.plot import Plot
from workbench.app.prune_settings import PruneSettings
from workbench.app.shrink_tab import ShrinkTab
from workbench.app.shrunk_result import figures_html, reasons_fold
from workbench.app.style import BESIDE, LEGIBLE, aligned
from workbench.app.window import LAYERS_TAB, WindowState
from workbench.charts import channel_plan_chart, channel_sensitivity_chart
from workbench.studio.plan_choice import chosen_plan, in_order, nearest, plan_notes, plan_title
from workbench.studio.pruning_state import PrunePlan, PruningState
from workbench.studio.pruning_words import (
    coupled_advice,
    first_try,
    measure_advice,
    plan_advice,
    plan_figures,
    pruning_invitation,
)
from workbench.studio.session import Session

HEIGHT = 300
ROW = 17
MOST = 520  # a heat map of more layers scrolls by itself
REST_MS = 250  # a slider that has not moved for so long is at rest
AT_ONCE_MS = 1  # Panel waits 50 ms for what else a control may send, longer than a step may take


class PruneTab(ShrinkTab):
    """Measure once, then look plans up: a slider over targets, over one ratio, or the table's own.

    While the slider moves, chart and figures follow; the heat map follows when it is let go.
    """

    kind = "prune"
    jobs = ("prune_search", "prune")

    def __init__(self, session: Session, window: WindowState) -> None:
        super().__init__(session, window, window.settings(PruneSettings), pruning_invitation())
        self.measure = self._button(
            _("Measure sensitivity"),
            "straighten",
            lambda: session.search_pruning(**self.settings.arguments(), wait=False),
            variant="contained",
        )
        self.by = pmui.RadioButtonGroup(
            label=_("Plan"),
            options={
                _("by target"): "search", _("one ratio"): "uniform", _("as in Layers"): "columns",
            },
            value=self.settings.plan, size="small", width=310, margin=0,
        )  # fmt: skip
        self.by.link(self.settings, value="plan")
        self._moves = 0
        self.target = self._slider(_("bit-operations, times fewer"))
        self.ratio = self._slider(_("share of every layer that goes"))
        self._show_slider()
        self.use = self._button(_("Use in Layers"), "done_all", self._use)
        self.prune = self._button(_("Prune"), "content_cut", self._prune, variant="contained")
        self.numbers = ThemedHTML(margin=(6, 0, 0, 0))
        self.plan = Plot(
            channel_plan_chart({}, {}), height=HEIGHT, label=_("Channels of each layer that stay")
        )
        self.heat = Plot(
            channel_sensitivity_chart({}),
            height=HEIGHT,
            label=_("Sensitivity by layer and channel"),
        )
        self.about = ThemedHTML(margin=(6, 0, 0, 0))
        self.blocked = ThemedHTML(margin=(4, 0))
        self.heat_box = pn.Column(
            self.heat, sizing_mode="stretch_width", height=HEIGHT, scroll=True, margin=0,
            styles={"overflow-y": "auto", "overflow-x": "hidden"},
        )  # fmt: skip
        row: dict[str, Any] = {"sizing_mode": "stretch_width", "margin": 0}
        # Hidden until something is measured, so that an empty page does not look broken.
        self.details = pn.Column(
            aligned(
                self.by, self.target, self.ratio, self.use, self.prune,
                sizing_mode="stretch_width", margin=(6, 0, 0, 0),
            ),
            self.numbers,
            pn.Row(
                pn.Column(_title(_("Channels that stay")), self.plan, styles=LEGIBLE, **row),
                pn.Column(
                    _title(_("How much each channel matters; those crossed out go")),
                    self.heat_box,
                    styles=LEGIBLE,
                    **row,
                ),
                sizing_mode="stretch_width", margin=(8, 0, 0, 0), styles={**BESIDE, "gap": "16px"},
            ),
            self.about,
            self.blocked,
            visible=False,
            **row,
        )  # fmt: skip
        self.watch(self.by, self._chose_kind, "value")
        for slider in (self.target, self.ratio):
            self.watch(slider, self.update_plan, "value")
            self.watch(slider, self._let_go, "value_throttled")
        self.watch(session, self.update_measured, "pruning")
        self.watch(session, self.update_columns, "layers")
        self.watch(session, self.update_running, "job", "layers", "pruning")
        self.watch(window, self.update_charts, "dark")
        self.update_measured()
        self.update_running()

    def _slider(self, label: str) -> Any:
        slider = pmui.DiscreteSlider(
            label=label, options={"1.00×": 0}, value=0, width=300, size="small",
            margin=(0, 12),
        )  # fmt: skip
        slider._debounce = AT_ONCE_MS  # type: ignore[misc]
        return slider

    # -- what the user does ---------------------------------------------------------------------

    def _show_slider(self) -> None:
        self.target.visible = self.by.value == "search"
        self.ratio.visible = self.by.value == "uniform"

    def _chose_kind(self) -> None:
        self._show_slider()
        self.update_charts()
        self.update_running()

    @property
    def chosen(self) -> PrunePlan | None:
        """The plan that is looked at; None before a measurement."""
        slider = self.ratio if self.by.value == "uniform" else self.target
        return chosen_plan(self.session, self.by.value, slider.value)

    def _let_go(self) -> None:
        """The slider is let go: remember where; what is too slow for every step comes at rest."""
        plan = self.chosen
        if plan is not None and plan.kind != "columns":
            self.settings.param.update(
                **{"target" if plan.kind == "search" else "ratio": plan.target}
            )
        self._moves += 1
        document = pn.state.curdoc
        if document is None or not document.session_context:
            self.update_heat()
        else:  # the keyboard lets go at every step
            document.add_timeout_callback(partial(self._rest, self._moves), REST_MS)

    def _rest(self, moves: int) -> None:
        if moves == self._moves:
            self._follow(self.update_heat, "the slider")

    def _use(self) -> None:
        plan = self.chosen
        if plan is not None:
            self.session.use_plan(plan)
            self.window.param.update(notice="", tab=LAYERS_TAB, quantity="prune_sensitivity")

    def _prune(self) -> None:
        plan = self.chosen
        if plan is not None and self.by.value != "columns":
            self.session.use_plan(plan)
        self.session.prune(wait=False)

    # -- what the user sees ---------------------------------------------------------------------

    def update_measured(self) -> None:
        """Another measurement: other plans on the sliders."""
        pruning: PruningState | None = self.session.pruning
        self.details.visible = pruning is not None
        if pruning is not None:
            _offer(self.target, pruning.plans, self.settings.target)
            _offer(self.ratio, pruning.uniform, self.settings.ratio)
            title = ngettext(
                "{count} layer cannot lose channels", "{count} layers cannot lose channels",
                len(pruning.blocked),
            ).format(count=len(pruning.blocked))  # fmt: skip
            self.blocked.fill(reasons_fold(title, pruning.blocked))
            parts = [measure_advice(pruning), coupled_advice(pruning)]
            self.about.fill(
                f'<div class="wb-muted">{"<br>".join(escape(part) for part in parts if part)}</div>'
            )
        self.update_charts()

    def update_columns(self) -> None:
        """Other ratios in the Layers table."""
        if self.by.value == "columns":
            self.update_charts()

    def update_charts(self) -> None:
        self.update_plan()
        self.update_heat()

    def update_plan(self) -> None:
        pruning, plan = self.session.pruning, self.chosen
        if pruning is None or plan is None:
            return
        notes = plan_notes(self.session, plan)
        with hold():
            self.numbers.fill(numbers_html(pruning, plan, notes))
            self.plan.draw(
                channel_plan_chart(
                    {name: len(values) for name, values in in_order(self.session).items()},
                    plan.removed,
                    notes={name: said(reason) for name, reason in notes.items()},
                    dark=self.window.dark,
                    height=HEIGHT,
                )
            )
            self.prune.disabled = self.busy or not plan.removed

    def update_heat(self) -> None:
        pruning, plan = self.session.pruning, self.chosen
        if pruning is None or plan is None:
            return
        height = max(HEIGHT, 60 + ROW * len(pruning.sensitivity))
        self.heat.height = height
        self.heat_box.height = min(height, MOST)
        self.heat.draw(
            channel_sensitivity_chart(
                in_order(self.session), plan.removed, dark=self.window.dark, height=height
            )
        )

    def update_running(self) -> None:
        """What may be pressed; several times a second while a job runs."""
        plan = self.chosen
        self.measure.disabled = self.busy or not len(self.session.layers)
        self.use.disabled = plan is None or self.by.value == "columns"
        self.prune.disabled = self.busy or plan is None or not plan.removed
        self.update_text(known=self.session.pruning is not None)

    def __panel__(self) -> Any:
        return self.column([self.measure], self.details)


def numbers_html(pruning: PruningState, plan: PrunePlan, notes: dict[str, str]) -> str:
    """What the plan leaves of each cost, and what should be known about it."""
    advice = [*plan_advice(pruning, plan)]
    if notes:
        name, reason = next(iter(notes.items()))
        advice.append(
            ngettext(
                "{count} layer loses nothing all the same. {name}: {reason}.",
                "{count} layers lose nothing all the same. {name}: {reason}.",
                len(notes),
            ).format(count=len(notes), name=name, reason=said(reason))
        )
    lines = "".join(
        f'<div class="wb-notice" style="margin-top:6px">{escape(line)}</div>' for line in advice
    )
    if first_try(plan):
        lines += f'<div class="wb-muted">{escape(first_try(plan))}</div>'
    return figures_html(plan_figures(pruning, plan)) + lines


def _offer(slider: Any, plans: tuple[PrunePlan, ...], first: float) -> None:
    """Put the plans on a slider; what it showed stays if it can."""
    if not plans:
        slider.disabled = True
        return
    options = {plan_title(plan): place for place, plan in enumerate(plans)}
    if list(slider.options) == list(options):
        return
    slider.param.update(options=options, value=nearest(plans, first), disabled=len(plans) < 2)


def _title(text: str) -> ThemedHTML:
    return ThemedHTML(f'<h2 class="wb">{escape(text)}</h2>')
