"""What a search for channels is asked for, and the advice that belongs to each setting."""

from __future__ import annotations

from typing import Any

import panel as pn
import panel_material_ui as pmui
import param

from workbench.app.html import ThemedHTML, escape
from workbench.app.i18n import _
from workbench.app.style import aligned
from workbench.studio.plan_choice import FIRST_RATIO, FIRST_TARGET, KINDS
from workbench.studio.pruning_control import MAX_RATIO
from workbench.studio.pruning_state import MEASURES

BATCHES = 32


class PruneSettings(param.Parameterized):
    """Arguments of ``Session.search_pruning`` as a person sets them, and the plan looked at.

    ``plan``: by ``target``, times fewer bit-operations, or one ``ratio`` of every layer, or
    'columns', as in the Layers table.
    """

    sensitivity: Any = param.Selector(default=MEASURES[0], objects=list(MEASURES))
    batches = param.Integer(default=BATCHES, bounds=(1, 100_000))
    max_ratio = param.Number(default=MAX_RATIO, bounds=(0.0, 1.0), inclusive_bounds=(False, False))
    aligned = param.Boolean(default=False)
    plan: Any = param.Selector(default=KINDS[0], objects=list(KINDS))
    target = param.Number(default=FIRST_TARGET)
    ratio = param.Number(default=FIRST_RATIO)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``Session.search_pruning``."""
        return {
            "sensitivity": self.sensitivity,
            "batches": self.batches,
            "max_ratio": self.max_ratio,
            "aligned": self.aligned,
        }

    def panel(self) -> Any:
        """The controls in one row, each with a line under them where it needs one."""
        small = {"size": "small", "margin": 0}
        measure = pmui.Select(
            label=_("sensitivity"),
            options={_("Taylor, with data"): "taylor", _("norms of the filters"): "l2"},
            value=self.sensitivity, width=176, **small,
        )  # fmt: skip
        measure.link(self, value="sensitivity", bidirectional=True)
        batches = pmui.IntInput.from_param(
            self.param.batches, label=_("batches of 8 samples"), width=160, **small
        )
        self.param.watch(
            lambda event: setattr(batches, "disabled", event.new == "l2"), "sensitivity"
        )
        about = _(
            "No layer loses more than the largest share, however little it seems to matter. Ascend "
            "devices compute 16 channels at once: keep multiples of 16 when one is the target; a "
            "layer of 16 channels or fewer then keeps them all."
        )
        return pn.Column(
            aligned(
                measure,
                batches,
                pmui.FloatInput.from_param(
                    self.param.max_ratio, label=_("largest share of a layer"), step=0.05,
                    format="0.[00]", width=176, **small,
                ),
                pmui.Checkbox.from_param(
                    self.param.aligned, label=_("keep multiples of 16 channels"), width=250, **small
                ),
                margin=(8, 0, 0, 0),
            ),
            ThemedHTML(f'<div class="wb-muted">{escape(about)}</div>', margin=(4, 0, 6, 0)),
            sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
