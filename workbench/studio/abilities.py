"""Which layers can be quantised, trained and pruned, and in words why the others cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.studio.columns import refusal
from workbench.studio.pruning_words import WholeLayers

if TYPE_CHECKING:
    from workbench.studio.session import Session

ABILITIES = ("quantised", "trained", "pruned")


def obstacles(session: Session) -> dict[str, dict[str, str]]:
    """For each of ``ABILITIES`` the layers that have not got it, in order, with the reason.

    Trained: by quantisation-aware training. Pruned: of channels; what the graph says of that is
    known once the sensitivities have been measured.
    """
    layers = session.project.store.layers()
    source = session.project.source
    whole = WholeLayers(session).obstacles
    found = {
        "quantised": {x.name: refusal(x, "quant_enable", True, source) for x in layers},
        "trained": {x.name: refusal(x, "retrain_enable", True, source) for x in layers},
        "pruned": {x.name: whole.get(x.name, "") for x in layers},
    }
    return {
        ability: {name: reason for name, reason in reasons.items() if reason}
        for ability, reasons in found.items()
    }
