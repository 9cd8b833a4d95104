"""What a plan of pruning means, in figures and in words: shared by the page and the widgets.

Source: specification chapter 40 section 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.charts import formats
from workbench.charts.spoken import said
from workbench.charts.text import _, ngettext
from workbench.studio.columns import refusal
from workbench.studio.pruning_state import PrunePlan, PruningState, Shrunk

if TYPE_CHECKING:
    from workbench.studio.session import Session

FEW_SAMPLES = 128
NARROW = 16


@dataclass(frozen=True)
class Figure:
    """One quantity of the whole model and of what a plan leaves, as text."""

    title: str
    whole: str
    left: str
    ratio: str
    note: str = ""


def pruning_invitation() -> str:
    """What pruning is, before anything is measured."""
    return _(
        "A network with fewer channels is smaller and faster on every device. Measure "
        "sensitivity finds the channels that matter least; nothing is changed by it. "
        "Afterwards the network has to be trained again. (2:4 sparsity, under Train, "
        "takes less accuracy, but needs a device that supports it.)"
    )


def plan_figures(state: PruningState, plan: PrunePlan) -> tuple[Figure, ...]:
    """What the model costs, and what the plan leaves of it."""
    whole = state.original
    rows = [
        (_("multiply-accumulates"), formats.count, whole.macs, plan.macs),
        (_("parameters"), formats.count, whole.parameters, plan.parameters),
        (_("size"), formats.size, whole.bytes, plan.bytes),
        (_("bit-operations"), formats.bit_operations, whole.bitops, plan.bitops),
    ]
    found = [
        Figure(title, show(before), show(after), formats.ratio(before, after))
        for title, show, before, after in rows
    ]
    return (*found, _latency(state, plan))


def measured_near(state: PruningState, plan: PrunePlan) -> PrunePlan | None:
    """The plan with a measured latency whose bit-operations are nearest; None without any."""
    known = [
        other
        for other in (state.original, *state.plans, *state.uniform)
        if math.isfinite(other.latency_ms)
    ]
    return min(known, key=lambda other: abs(math.log(other.reached / plan.reached)), default=None)


def _latency(state: PruningState, plan: PrunePlan) -> Figure:
    title = _("latency")
    whole, near = state.original.latency_ms, measured_near(state, plan)
    if near is None:
        return Figure(title, formats.UNKNOWN, formats.UNKNOWN, "", _("not measured"))
    exact = math.isfinite(plan.latency_ms) or math.isclose(near.bitops, plan.bitops)
    after = plan.latency_ms if math.isfinite(plan.latency_ms) else near.latency_ms
    note = (
        _("measured")
        if exact
        else _("as measured at {ratio}, the nearest").format(ratio=f"{near.reached:.2f}×")
    )
    return Figure(title, _ms(whole), _ms(after), formats.ratio(whole, after), note)


def _ms(value: float) -> str:
    return f"{value:.2f} ms" if math.isfinite(value) else formats.UNKNOWN


def plan_advice(state: PruningState, plan: PrunePlan) -> tuple[str, ...]:
    """What a person should know about this plan; empty when there is nothing."""
    found = []
    if not plan.met:
        found.append(
            _(
                "{target} cannot be met: {reached} is the most that these layers give. Allow a "
                "larger share of each layer, or measure without multiples of 16."
            ).format(target=f"{plan.target:.2f}×", reached=f"{plan.reached:.2f}×")
        )
    if state.aligned and (narrow := narrow_layers(state)):
        found.append(
            ngettext(
                "{count} layer of at most 16 channels keeps all of them: multiples of 16 are kept.",
                "{count} layers of at most 16 channels keep all of them: multiples of 16 are kept.",
                len(narrow),
            ).format(count=len(narrow))
        )
    if not plan.removed and plan.met:
        found.append(_("This plan removes nothing."))
    near = measured_near(state, plan)
    if (
        plan.removed
        and not state.aligned
        and near is not None
        and near.latency_ms > state.original.latency_ms
    ):
        found.append(
            _(
                "Fewer operations, but slower on this machine: its kernels compute channels in "
                "blocks. Measure again with multiples of 16 channels."
            )
        )
    return tuple(found)


def first_try(plan: PrunePlan) -> str:
    """What to begin with when one ratio is given to all; empty for other plans."""
    if plan.kind != "uniform":
        return ""
    return _(
        "20 % is a good first try. A plan by target takes more where it costs less: for the same "
        "cost it usually keeps more of the accuracy."
    )


def narrow_layers(state: PruningState) -> tuple[str, ...]:
    """Layers that could lose channels, but have no more than one block of 16."""
    return tuple(name for name, values in state.sensitivity.items() if len(values) <= NARROW)


def measure_advice(state: PruningState) -> str:
    """How the sensitivities were measured, and what would make them steadier."""
    if state.measure == "l2":
        return _(
            "Norms of the filters, without data: compare channels of one layer, not layers. Taylor "
            "sensitivity compares them all."
        )
    words = _(
        "What the loss would lose without the channel, by {samples} samples and {loss}."
    ).format(samples=state.samples, loss=said(state.loss) or _("the loss"))
    if state.samples < FEW_SAMPLES:
        words = _("{words} More samples make the ranking steadier.").format(words=words)
    return words


def coupled_advice(state: PruningState) -> str:
    """What coupled layers mean for an edit; empty where there are none."""
    pair = next(((name, others) for name, others in state.coupled.items() if others), None)
    if pair is None:
        return ""
    name, others = pair
    return _(
        "Channels that are added together go together, as those of {name} and {other}: the "
        "smallest ratio of such a group counts, and a layer that is switched off keeps all of it."
    ).format(name=name, other=others[0])


def shrunk_figures(shrunk: Shrunk) -> tuple[Figure, ...]:
    """Metric, cost and latency of a smaller project and of the one that it was made of."""
    name = shrunk.metric_name
    metric = f"{formats.metric_title(name) or _('metric')} · {_('not retrained')}"
    before, after = shrunk.metric
    rows = (
        (_("multiply-accumulates"), formats.count, shrunk.macs),
        (_("parameters"), formats.count, shrunk.parameters),
        (_("size"), formats.size, shrunk.bytes),
        (_("latency"), _ms, shrunk.latency_ms),
    )
    return (
        Figure(
            metric, formats.metric(before, name), formats.metric(after, name),
            formats.metric_delta(before, after, name),
        ),
        *(Figure(title, show(a), show(b), formats.ratio(a, b)) for title, show, (a, b) in rows),
    )  # fmt: skip


def shrunk_advice(shrunk: Shrunk, *, trainable: bool) -> tuple[str, ...]:
    """What to do next with a smaller project, whose model can be trained or came as a file."""
    if not trainable:
        return (
            _(
                "A model that came as a file cannot be trained: open it from Python where the "
                "metric is too low. It can be quantised like any other model."
            ),
        )
    if shrunk.kind == "prune":
        return (
            _(
                "The metric before retraining says little. Open the project and fine-tune it under "
                "Train; quantise after that, for a calibration from before pruning is invalid."
            ),
            _(
                "Is it still too low then? Switch the most sensitive layers off, or give them a "
                "smaller ratio, rather than lowering the ratio of all."
            ),
        )
    return (
        _("Open the project and fine-tune it under Train; then quantise it like any other model."),
    )


def layer_reason(quantising: str, pruning: str) -> str:
    """Why a layer cannot be quantised, why it keeps all its channels, or both."""
    if not pruning:
        return quantising
    if not quantising:
        return _("pruning: {reason}").format(reason=pruning)
    return _("{quantising} · pruning: {pruning}").format(quantising=quantising, pruning=pruning)


class WholeLayers:
    """Why layers of a session keep all their channels, for its table of layers."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: frozenset[str] = frozenset()
        self._kinds: dict[str, str] = {}

    @property
    def obstacles(self) -> dict[str, str]:
        """Layer -> why it cannot lose channels: by its kind, or by the graph once that is known."""
        session = self._session
        if session.names != self._known:
            self._known = session.names
            layers, source = session.project.store.layers(), session.project.source
            kinds = ((x.name, refusal(x, "prune_enable", True, source)) for x in layers)
            self._kinds = {name: reason for name, reason in kinds if reason}
        return {**self._kinds, **(session.pruning.blocked if session.pruning is not None else {})}

    def reasons(self) -> dict[str, str]:
        """``obstacles``, and why others lose nothing by the ratios that are chosen now."""
        return {**self.obstacles, **self._session.prune_notes()}
