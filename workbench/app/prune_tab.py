"""Channels that can go: how much each matters, what a plan leaves, and the smaller project."""

from __future__ import annotations

import math
from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app.html import ThemedHTML, escape, notice
from workbench.app.i18n import _, ngettext, said
from workbench.app.job_notice import JobNotice
from workbench.app.plot import Plot
from workbench.app.prune_settings import PruneSettings
from workbench.app.shrunk_result import made_from, reasons_fold, shrunk_line, shrunk_result
from workbench.app.view import View
from workbench.app.window import LAYERS_TAB, SEARCH_TAB, WindowState
from workbench.charts import channel_plan_chart, channel_sensitivity_chart
from workbench.studio.pruning_state import PrunePlan, PruningState
from workbench.studio.pruning_words import (
    coupled_advice,
    first_try,
    measure_advice,
    plan_advice,
    plan_figures,
)
from workbench.studio.session import Session

HEIGHT = 300
ROW = 17
KINDS = ("prune_search", "prune")
ALIGNED = {"align-items": "center", "gap": "8px"}


class PruneTab(View):
    """Measure once, then look plans up: a slider over targets, over one ratio, or the table's own.

    While the slider moves, chart and figures follow; the heat map follows when it is let go.
    """

    def __init__(self, session: Session, window: WindowState) -> None:
        super().__init__(session, window, SEARCH_TAB)
        self.settings = window.settings(PruneSettings)
        self.state = JobNotice(session, window, ("open", *KINDS))
        self.parts = [self.state]
        self.origin = ThemedHTML(margin=(8, 0, 0, 0), visible=False)
        self.measure = self._button(
            _("Measure sensitivity"),
            "straighten",
            lambda: session.search_pruning(**self.settings.arguments(), wait=False),
            variant="contained",
        )
        self.stop = self._button(_("Stop"), "stop", session.cancel)
        self.more = pn.Column(visible=False, sizing_mode="stretch_width", margin=0)
        self.fold = self._button(_("More settings"), "tune", self._fold, variant="text")
        self.text = ThemedHTML(margin=(4, 0))
        self.by = pmui.RadioButtonGroup(
            label=_("Plan"),
            options={
                _("by target"): "search", _("one ratio"): "uniform", _("as in Layers"): "columns",
            },
            value=self.settings.plan, size="small", width=310, margin=0,
        )  # fmt: skip
        self.by.link(self.settings, value="plan")
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
        self.done = ThemedHTML(margin=(4, 0))
        self.result = ThemedHTML(margin=(10, 0, 0, 0))
        scroll = {"overflow-y": "auto", "overflow-x": "hidden"}
        row: dict[str, Any] = {"sizing_mode": "stretch_width", "margin": 0}
        # Hidden until something is measured, so that an empty page does not look broken.
        self.details = pn.Column(
            pn.Row(
                self.by, self.target, self.ratio, self.use, self.prune,
                sizing_mode="stretch_width", margin=(6, 0, 0, 0), styles=ALIGNED,
            ),
            self.numbers,
            pn.Row(
                pn.Column(_title(_("Channels that stay")), self.plan, **row),
                pn.Column(
                    _title(_("How much each channel matters; those crossed out go")),
                    pn.Column(
                        self.heat, sizing_mode="stretch_width", height=HEIGHT, scroll=True,
                        margin=0, styles=scroll,
                    ),
                    **row,
                ),
                sizing_mode="stretch_width", margin=(8, 0, 0, 0), styles={"gap": "16px"},
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
        self.watch(session, self.update_result, "shrunk", "origin", "summary")
        self.watch(session, self.update_running, "job", "layers", "pruning")
        self.watch(window, self.update_charts, "dark")
        self.update_measured()
        self.update_result()
        self.update_running()

    def _button(self, label: str, icon: str, action: Any, variant: str = "outlined") -> Any:
        button = pmui.Button(label=label, icon=icon, size="small", variant=variant, margin=0)
        self.press(button, lambda: self.act(lambda: action()))
        return button

    def _slider(self, label: str) -> Any:
        return pmui.DiscreteSlider(
            label=label, options={_times(1.0): 0}, value=0, width=300, size="small",
            margin=(0, 12),
        )  # fmt: skip

    # -- what the user does ---------------------------------------------------------------------

    def _fold(self) -> None:
        if not len(self.more):
            self.more.append(self.settings.panel())
        self.more.visible = not self.more.visible
        self.fold.label = _("Fewer settings") if self.more.visible else _("More settings")

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
        pruning: PruningState | None = self.session.pruning
        if pruning is None:
            return None
        if self.by.value == "columns":
            return pruning.with_ratios(self.session.prune_ratios())
        plans, slider = (
            (pruning.plans, self.target)
            if self.by.value == "search"
            else (pruning.uniform, self.ratio)
        )
        return plans[min(slider.value, len(plans) - 1)] if plans else pruning.original

    def _let_go(self) -> None:
        """The slider stays where it is: remember it, and draw what is too slow for every step."""
        plan = self.chosen
        if plan is not None and plan.kind != "columns":
            self.settings.param.update(
                **{"target" if plan.kind == "search" else "ratio": plan.target}
            )
        self.update_heat()

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
            _offer(self.target, pruning.plans, self.settings.target, _times)
            _offer(self.ratio, pruning.uniform, self.settings.ratio, _share)
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
        notes = pruning.notes(
            plan.ratios if plan.kind != "columns" else self.session.prune_ratios()
        )
        self.plan.draw(
            channel_plan_chart(
                {name: len(values) for name, values in self._in_order(pruning).items()},
                plan.removed,
                notes={name: said(reason) for name, reason in notes.items()},
                dark=self.window.dark,
                height=HEIGHT,
            )
        )
        self.numbers.fill(numbers_html(pruning, plan, notes))
        self.prune.disabled = self._busy or not plan.removed

    def _in_order(self, pruning: PruningState) -> dict[str, Any]:
        """Sensitivities of the layers in the model's order, as everywhere on the page."""
        known = pruning.sensitivity
        return {name: known[name] for name in self.session.layers["name"] if name in known}

    def update_heat(self) -> None:
        pruning, plan = self.session.pruning, self.chosen
        if pruning is None or plan is None:
            return
        height = max(HEIGHT, 60 + ROW * len(pruning.sensitivity))
        self.heat.height = height
        self.heat.draw(
            channel_sensitivity_chart(
                self._in_order(pruning), plan.removed, dark=self.window.dark, height=height
            )
        )

    @property
    def _busy(self) -> bool:
        job = self.session.job
        return job is not None and bool(job.active)

    def update_running(self) -> None:
        """What may be pressed, and one sentence; several times a second while a job runs."""
        job, plan = self.session.job, self.chosen
        running = self._busy and job is not None and job.kind in KINDS
        self.measure.disabled = self._busy or not len(self.session.layers)
        self.stop.disabled = not running
        self.use.disabled = plan is None or self.by.value == "columns"
        self.prune.disabled = self._busy or plan is None or not plan.removed
        text = ""
        if running and job is not None:
            text = f'<div role="status">{escape(said(job.message) or _("Working"))} …</div>'
        elif self.session.pruning is None:
            text = notice(
                _(
                    "A network with fewer channels is smaller and faster on every device. Measure "
                    "sensitivity finds the channels that matter least; nothing is changed by it. "
                    "Afterwards the network has to be trained again. (2:4 sparsity, under Train, "
                    "takes less accuracy, but needs a device that supports it.)"
                )
            )
        self.text.fill(text)

    def update_result(self) -> None:
        origin = made_from(self.session.origin)
        self.origin.fill(origin)
        self.origin.visible = bool(origin)
        self.result.fill(shrunk_result(self.session.shrunk, "prune"))
        self.done.fill(shrunk_line(self.session.shrunk, "prune"))

    def __panel__(self) -> Any:
        return pn.Column(
            self.state,
            self.origin,
            pn.Row(
                self.measure, self.stop, self.fold,
                sizing_mode="stretch_width", margin=(6, 0, 0, 0), styles=ALIGNED,
            ),
            self.more,
            self.text,
            self.done,
            self.details,
            self.result,
            sizing_mode="stretch_width",
            margin=(0, 14, 10, 14),
        )  # fmt: skip


def numbers_html(pruning: PruningState, plan: PrunePlan, notes: dict[str, str]) -> str:
    """What the plan leaves of each cost, and what should be known about it."""
    cells = "".join(
        f'<div class="wb-readout"><dt>{escape(figure.title)}'
        f"{' · ' + escape(figure.note) if figure.note else ''}</dt>"
        f'<dd><span class="wb-from">{escape(figure.whole)} → </span>'
        f"<span>{escape(figure.left)}</span>"
        f'<span class="wb-delta wb-muted">{escape(figure.ratio)}</span></dd></div>'
        for figure in plan_figures(pruning, plan)
    )
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
    lines = "".join(f'<div class="wb-notice">{escape(line)}</div>' for line in advice)
    if first_try(plan):
        lines += f'<div class="wb-muted">{escape(first_try(plan))}</div>'
    return f'<dl class="wb-readouts" aria-live="polite">{cells}</dl>{lines}'


def _offer(slider: Any, plans: tuple[PrunePlan, ...], first: float, show: Any) -> None:
    """Put the plans on a slider; what it showed stays if it can."""
    if not plans:
        slider.disabled = True
        return
    options = {show(plan.target): place for place, plan in enumerate(plans)}
    if list(slider.options) == list(options):
        return
    nearest = min(range(len(plans)), key=lambda place: abs(plans[place].target - first))
    slider.param.update(options=options, value=nearest, disabled=len(plans) < 2)


def _times(target: float) -> str:
    return f"{target:.2f}×"


def _share(ratio: float) -> str:
    return f"{100 * ratio:.0f} %" if math.isfinite(ratio) else ""


def _title(text: str) -> ThemedHTML:
    return ThemedHTML(f'<h2 class="wb">{escape(text)}</h2>')
