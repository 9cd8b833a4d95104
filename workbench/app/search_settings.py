"""What an auto-calibration is asked for: target loss, strategy, sensitivity, objective."""

from __future__ import annotations

from typing import Any

import panel_material_ui as pmui
import param

from workbench.app.i18n import _
from workbench.app.style import aligned

STRATEGIES = ("Recover", "BinarySearch", "BinarySearchVerified", "Greedy", "Pareto")
SENSITIVITIES = ("CosineSimilarity", "SQNR", "MSE", "EndToEnd")
OBJECTIVES = ("size", "bops", "latency")


class SearchSettings(param.Parameterized):
    """``max_loss_percent`` is in percentage points of the metric (1 = 0.01).

    ``objective`` is what strategy 'Pareto' makes small.
    """

    max_loss_percent = param.Number(default=0.5, bounds=(0.0, None))
    strategy: Any = param.Selector(default=STRATEGIES[0], objects=list(STRATEGIES))
    sensitivity: Any = param.Selector(default=SENSITIVITIES[0], objects=list(SENSITIVITIES))

    objective: Any = param.Selector(default=OBJECTIVES[0], objects=list(OBJECTIVES))

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``Session.auto_calibrate``."""
        arguments = {
            "max_loss": self.max_loss_percent / 100,
            "strategy": self.strategy,
            "sensitivity": self.sensitivity,
        }
        if self.strategy == "Pareto":
            arguments["objective"] = self.objective
        return arguments

    def panel(self) -> Any:
        """The controls, in one row."""
        small = {"size": "small", "margin": 0}
        words = {"size": _("size"), "bops": _("bit-operations"), "latency": _("latency")}
        objective = pmui.Select(
            label=_("make small"), options={words[x]: x for x in OBJECTIVES},
            value=self.objective, width=150, visible=self.strategy == "Pareto", **small,
        )  # fmt: skip
        objective.link(self, value="objective")
        self.param.watch(
            lambda event: setattr(objective, "visible", event.new == "Pareto"), "strategy"
        )
        return aligned(
            pmui.FloatInput.from_param(
                self.param.max_loss_percent,
                label=_("largest loss, % points"),
                step=0.1,
                width=140,
                **small,
            ),
            pmui.Select.from_param(self.param.strategy, label=_("strategy"), width=170, **small),
            pmui.Select.from_param(
                self.param.sensitivity, label=_("sensitivity"), width=170, **small
            ),
            objective,
        )
