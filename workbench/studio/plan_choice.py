"""Which plan of pruning is looked at: shared by the page and the widgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.charts import formats
from workbench.studio.pruning_state import PrunePlan, PruningState

if TYPE_CHECKING:
    from workbench.studio.session import Session

KINDS = ("search", "uniform", "columns")
"""By a target of bit-operations, by one ratio of every layer, or as the table of layers says."""

FIRST_TARGET, FIRST_RATIO = 2.0, 0.2


def chosen_plan(session: Session, kind: str, place: int) -> PrunePlan | None:
    """The plan at ``place`` among those of a kind; None before a measurement."""
    pruning: PruningState | None = session.pruning
    if pruning is None:
        return None
    if kind == "columns":
        return pruning.with_ratios(session.prune_ratios())
    plans = pruning.plans if kind == "search" else pruning.uniform
    return plans[min(place, len(plans) - 1)] if plans else pruning.original


def nearest(plans: Sequence[PrunePlan], target: float) -> int:
    """The place of the plan whose target is nearest."""
    return min(range(len(plans)), key=lambda place: abs(plans[place].target - target))


def plan_title(plan: PrunePlan) -> str:
    """``2.00×`` or ``20 %``."""
    return formats.percent(plan.target) if plan.kind == "uniform" else f"{plan.target:.2f}×"


def plan_notes(session: Session, plan: PrunePlan) -> dict[str, str]:
    """Layers that a plan gives a ratio and that lose nothing all the same: why."""
    pruning: PruningState = session.pruning
    return pruning.notes(plan.ratios if plan.kind != "columns" else session.prune_ratios())


def in_order(session: Session) -> dict[str, Any]:
    """Sensitivities by channel, layers in the order of the model; empty before a search."""
    known = session.pruning.sensitivity if session.pruning is not None else {}
    return {name: known[name] for name in session.layers["name"] if name in known}
