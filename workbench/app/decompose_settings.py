"""What a decomposition is asked for, with the engine's defaults."""

from __future__ import annotations

from typing import Any

import panel_material_ui as pmui
import param

from workbench.app.i18n import _
from workbench.app.style import aligned
from workbench.engine.algorithms.tensor_decomposition import METHODS

RULES = ("compat", "scale_free", "energy", "fixed")
FIXED_RANK = 32


class DecomposeSettings(param.Parameterized):
    """Arguments of ``Session.decompose`` as a person sets them.

    ``include`` and ``exclude``: patterns of layer names with commas between them. ``max_error``: 1
    stands for no limit, as no layer has a larger relative error.
    """

    include = param.String(default="")
    exclude = param.String(default="")
    rank_rule: Any = param.Selector(default=RULES[0], objects=list(RULES))
    energy = param.Number(default=0.9, bounds=(0.0, 1.0), inclusive_bounds=(False, True))
    rank = param.Integer(default=FIXED_RANK, bounds=(1, 100_000))
    max_error = param.Number(default=1.0, bounds=(0.0, 1.0))
    min_gain = param.Number(default=0.0, bounds=(0.0, 1.0), inclusive_bounds=(True, False))
    method: Any = param.Selector(default="gram", objects=list(METHODS))
    balance = param.Boolean(default=False)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``Session.decompose``."""
        return {
            "include": _patterns(self.include),
            "exclude": _patterns(self.exclude),
            "rank_rule": self.rank if self.rank_rule == "fixed" else self.rank_rule,
            "energy": self.energy,
            "max_error": self.max_error if self.max_error < 1.0 else None,
            "min_gain": self.min_gain,
            "method": self.method,
            "balance": self.balance,
        }

    def panel(self) -> Any:
        """The controls in one or two rows."""
        small = {"size": "small", "margin": (4, 4)}
        rule = self._choice(
            "rank_rule",
            _("rank"),
            {
                _("estimated, in a band"): "compat", _("estimated, for any scale"): "scale_free",
                _("by energy"): "energy", _("fixed"): "fixed",
            },
            190,
        )  # fmt: skip
        number = {"format": "0.[0000]", **small}
        energy = pmui.FloatInput.from_param(
            self.param.energy, label=_("energy to keep"), step=0.05, width=126, **number
        )
        rank = pmui.IntInput.from_param(self.param.rank, label=_("rank of all"), width=112, **small)
        for control, needed in ((energy, "energy"), (rank, "fixed")):
            _shown_for(self, control, needed)
        return aligned(
            rule,
            energy,
            rank,
            pmui.FloatInput.from_param(
                self.param.max_error, label=_("largest relative error"), step=0.05, width=158,
                **number,
            ),
            pmui.FloatInput.from_param(
                self.param.min_gain, label=_("least gain of MACs"), step=0.05, width=140, **number
            ),
            self._choice(
                "method", _("method"),
                {_("Gram matrix"): "gram", _("SVD"): "svd", _("randomised"): "randomised"}, 128,
            ),
            pmui.TextInput.from_param(
                self.param.include, label=_("only layers like"), width=150, **small
            ),
            pmui.TextInput.from_param(
                self.param.exclude, label=_("not layers like"), width=150, **small
            ),
            pmui.Checkbox.from_param(
                self.param.balance, label=_("balance the two layers"), width=190, **small
            ),
            margin=(8, 0, 4, 0),
        )  # fmt: skip

    def _choice(self, name: str, label: str, options: dict[str, str], width: int) -> Any:
        chooser = pmui.Select(
            label=label, options=options, value=getattr(self, name), width=width, size="small",
            margin=0,
        )  # fmt: skip
        chooser.link(self, value=name, bidirectional=True)
        return chooser


def _shown_for(settings: DecomposeSettings, control: Any, rule: str) -> None:
    control.visible = settings.rank_rule == rule
    settings.param.watch(lambda event: setattr(control, "visible", event.new == rule), "rank_rule")


def _patterns(text: str) -> list[str] | None:
    """``*.conv1, layer4.*`` as a list; None without any."""
    return [part.strip() for part in text.split(",") if part.strip()] or None
