"""What an auto-calibration is asked for: target loss, strategy, sensitivity."""

from __future__ import annotations

from typing import Any

import panel as pn
import panel_material_ui as pmui
import param

from workbench.app.i18n import _

STRATEGIES = ("BinarySearch",)
SENSITIVITIES = ("CosineSimilarity", "SQNR", "MSE")


class SearchSettings(param.Parameterized):
    """``max_loss_percent`` is in percentage points of the metric (1 = 0.01)."""

    max_loss_percent = param.Number(default=0.5, bounds=(0.0, None))
    strategy: Any = param.Selector(default=STRATEGIES[0], objects=list(STRATEGIES))
    sensitivity: Any = param.Selector(default=SENSITIVITIES[0], objects=list(SENSITIVITIES))

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``Session.auto_calibrate``."""
        return {
            "max_loss": self.max_loss_percent / 100,
            "strategy": self.strategy,
            "sensitivity": self.sensitivity,
        }

    def panel(self) -> Any:
        """The controls, in one row."""
        return pn.Row(
            pmui.FloatInput.from_param(
                self.param.max_loss_percent,
                label=_("largest loss, % points"),
                step=0.1,
                width=170,
                size="small",
            ),
            pmui.Select.from_param(
                self.param.strategy, label=_("strategy"), width=190, size="small"
            ),
            pmui.Select.from_param(
                self.param.sensitivity, label=_("sensitivity"), width=190, size="small"
            ),
            margin=0,
            styles={"align-items": "center"},
        )
