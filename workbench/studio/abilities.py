"""Which layers can be quantised, trained and pruned, and in words why the others cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.engine.errors import WrongState
from workbench.studio.columns import refusal
from workbench.studio.project import FILE_SOURCES, SourceSpec
from workbench.studio.pruning_words import WholeLayers

if TYPE_CHECKING:
    from workbench.studio.session import Session

ABILITIES = ("quantised", "trained", "pruned")


def no_training(source: SourceSpec) -> WrongState:
    """Why a model that came as a file is not trained, and what to do."""
    return WrongState(
        f"a model that was opened from {FILE_SOURCES[source.base.kind]} cannot be trained",
        where="model",
        hint="Open it from Python: wb.open(model, data=…, train=loader), or "
        "package.module:factory. Quantisation without training works as it is.",
    )


def obstacles(session: Session) -> dict[str, dict[str, str]]:
    """For each of ``ABILITIES`` the layers that have not got it, in order, with the reason.

    Trained: by quantisation-aware training. Pruned: of channels; what the graph says of that is
    known once the sensitivities have been measured.
    """
    layers = session.project.store.layers()
    source = session.project.source
    trained = {x.name: refusal(x, "retrain_enable", True) for x in layers}
    if not source.trainable:
        trained = dict.fromkeys(trained, no_training(source).message)
    whole = WholeLayers(session).obstacles
    found = {
        "quantised": {x.name: refusal(x, "quant_enable", True) for x in layers},
        "trained": trained,
        "pruned": {x.name: whole.get(x.name, "") for x in layers},
    }
    return {
        ability: {name: reason for name, reason in reasons.items() if reason}
        for ability, reasons in found.items()
    }
