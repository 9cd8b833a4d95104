"""What a training is asked for, with the engine's defaults: the usual ones, the others folded."""

from __future__ import annotations

import dataclasses
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param

from workbench.app.i18n import _
from workbench.engine.flows.training_settings import OPTIMIZERS, SCHEDULES, TrainingSettings
from workbench.studio.training import LOSSES
from workbench.studio.training_control import RATES
from workbench.studio.training_state import METHODS

DEFAULTS = TrainingSettings()
BATCH_SIZE = 64
FIELDS = tuple(field.name for field in dataclasses.fields(TrainingSettings))


class TrainSettings(param.Parameterized):
    """Arguments of ``Session.train`` as a person sets them."""

    method: Any = param.Selector(default=METHODS[0], objects=list(METHODS))
    epochs = param.Integer(default=DEFAULTS.epochs, bounds=(1, 100_000))
    learning_rate = param.Number(default=RATES[METHODS[0]], bounds=(0.0, None))
    batch_size = param.Integer(default=BATCH_SIZE, bounds=(1, 100_000))
    loss: Any = param.Selector(default=LOSSES[0], objects=list(LOSSES))
    optimizer: Any = param.Selector(default=DEFAULTS.optimizer, objects=list(OPTIMIZERS))
    schedule: Any = param.Selector(default=DEFAULTS.schedule, objects=list(SCHEDULES))
    weight_decay = param.Number(default=DEFAULTS.weight_decay, bounds=(0.0, None))
    clip_rate = param.Number(default=DEFAULTS.clip_rate, bounds=(0.0, None))
    gradient_clip = param.Number(default=DEFAULTS.gradient_clip, bounds=(0.0, None))
    patience = param.Integer(default=DEFAULTS.patience, bounds=(0, 100_000))
    evaluate_every = param.Integer(default=DEFAULTS.evaluate_every, bounds=(0, None))
    checkpoint_every = param.Integer(default=DEFAULTS.checkpoint_every, bounds=(0, None))
    seed = param.Integer(default=DEFAULTS.seed, bounds=(0, None))

    @param.depends("method", watch=True)
    def _usual_rate(self) -> None:
        """A rate that nobody chose follows the method."""
        if self.learning_rate in RATES.values():
            self.learning_rate = RATES[self.method]

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``Session.train``."""
        names: tuple[str, ...]
        if self.method == "distill":
            names = ("method", "epochs", "learning_rate", "batch_size", "seed")
        else:
            known = (*FIELDS, "method", "batch_size", "loss")
            names = tuple(name for name in self.param if name in known)
        return {name: getattr(self, name) for name in names}

    def panel(self) -> Any:
        """The usual controls in one row."""
        methods = {_("QAT"): "qat", _("distillation"): "distill"}
        losses = {
            _("by the data"): "auto", _("cross-entropy"): "cross_entropy",
            _("squared error"): "mse", _("float outputs"): "float",
        }  # fmt: skip
        return pn.Row(
            self._choice("method", _("method"), methods, 128),
            self._number("epochs", _("epochs"), 84, pmui.IntInput),
            self._number("learning_rate", _("learning rate"), 118, pmui.FloatInput),
            self._number("batch_size", _("batch size"), 98, pmui.IntInput),
            self._choice("loss", _("loss"), losses, 140, only_qat=True),
            margin=0,
            styles={"align-items": "center"},
        )

    def more(self) -> Any:
        """The others, for a fold."""
        optimizers = {"AdamW": "adamw", "SGD": "sgd"}
        schedules = {
            _("cosine"): "cosine", _("one cycle"): "one_cycle", _("constant"): "constant"
        }  # fmt: skip
        whole, number = pmui.IntInput, pmui.FloatInput
        return pn.FlexBox(
            self._choice("optimizer", _("optimiser"), optimizers, 120, only_qat=True),
            self._choice("schedule", _("schedule"), schedules, 120, only_qat=True),
            self._number("weight_decay", _("weight decay"), 120, number, only_qat=True),
            self._number("clip_rate", _("clip rate, ×"), 110, number, only_qat=True),
            self._number("gradient_clip", _("gradient clip"), 118, number, only_qat=True),
            self._number("patience", _("patience"), 96, whole, only_qat=True),
            self._number("evaluate_every", _("evaluate, steps"), 124, whole, only_qat=True),
            self._number("checkpoint_every", _("checkpoint, steps"), 136, whole, only_qat=True),
            self._number("seed", _("seed"), 90, whole),
            gap="8px",
            margin=0,
            styles={"padding": "8px 0"},
        )

    def _number(
        self, name: str, label: str, width: int, kind: Any, *, only_qat: bool = False
    ) -> Any:
        extra = {"format": "0.[0000000]"} if kind is pmui.FloatInput else {}
        return self._for_method(
            kind.from_param(
                self.param[name], label=label, width=width, size="small", margin=(4, 4), **extra
            ),
            only_qat,
        )

    def _choice(
        self, name: str, label: str, options: dict[str, str], width: int, *, only_qat: bool = False
    ) -> Any:
        chooser = pmui.Select(
            label=label, options=options, value=getattr(self, name), width=width, size="small",
            margin=(4, 4),
        )  # fmt: skip
        chooser.link(self, value=name, bidirectional=True)
        return self._for_method(chooser, only_qat)

    def _for_method(self, control: Any, only_qat: bool) -> Any:
        """Distillation trains block after block and has settings of its own."""
        if only_qat:
            control.visible = self.method == "qat"
            self.param.watch(
                lambda event: setattr(control, "visible", event.new == "qat"), "method"
            )
        return control
