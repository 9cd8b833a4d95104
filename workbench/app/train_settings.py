"""What a training is asked for, with the engine's defaults: the usual ones, the others folded."""

from __future__ import annotations

import dataclasses
from typing import Any

import panel_material_ui as pmui
import param

from workbench.app.i18n import _
from workbench.app.style import aligned
from workbench.charts.words import method_title
from workbench.engine.flows.training_settings import OPTIMIZERS, SCHEDULES, TrainingSettings
from workbench.studio.compression_config import Compression
from workbench.studio.training import LOSSES
from workbench.studio.training_control import RATES
from workbench.studio.training_state import METHODS, QUANTISING, SPARSITIES

DEFAULTS = TrainingSettings()
COMPRESSION = Compression()
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
    sparsity: Any = param.Selector(default=COMPRESSION.sparsity, objects=list(SPARSITIES))
    update_freq = param.Integer(default=COMPRESSION.update_freq, bounds=(0, 2**32 - 1))
    prune_ratio = param.Number(default=COMPRESSION.prune_ratio, bounds=(0.0, 1.0))
    ascend_optimized = param.Boolean(default=COMPRESSION.ascend_optimized)
    quantise = param.Boolean(default=COMPRESSION.quantise)

    @param.depends("method", watch=True)
    def _usual_rate(self) -> None:
        """A rate that nobody chose follows the method."""
        if self.learning_rate in RATES.values():
            self.learning_rate = RATES[self.method]

    def taken(self) -> tuple[str, ...]:
        """The settings that the chosen method has."""
        if self.method == "distill":
            return ("method", "epochs", "learning_rate", "batch_size", "seed")
        names = [*FIELDS, "method", "batch_size", "loss"]
        if not self.quantises():
            names.remove("clip_rate")
        if self.method == "compressed":
            names += ["sparsity", "quantise"]
        if self.method == "sparse" or (self.method, self.sparsity) == ("compressed", "2:4"):
            names.append("update_freq")
        if (self.method, self.sparsity) == ("compressed", "channels"):
            names += ["prune_ratio", "ascend_optimized"]
        return tuple(names)

    def quantises(self) -> bool:
        """Whether the training has quantisers."""
        if self.method == "compressed":
            return bool(self.quantise)
        return self.method in QUANTISING

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``Session.train``."""
        taken = self.taken()
        return {name: getattr(self, name) for name in self.param if name in taken}

    def panel(self) -> Any:
        """The usual controls in one row."""
        methods = {method_title(method): method for method in METHODS}
        losses = {
            _("by the data"): "auto", _("cross-entropy"): "cross_entropy",
            _("squared error"): "mse", _("float outputs"): "float",
        }  # fmt: skip
        return aligned(
            self._choice("method", _("method"), methods, 128),
            self._number("epochs", _("epochs"), 84, pmui.IntInput),
            self._number("learning_rate", _("learning rate"), 118, pmui.FloatInput),
            self._number("batch_size", _("batch size"), 98, pmui.IntInput),
            self._choice("loss", _("loss"), losses, 140),
            margin=0,
        )

    def compression(self) -> Any:
        """What is pruned, and whether it is quantised: for 2:4 sparsity and combined training."""
        kinds = {_("2:4"): "2:4", _("channels"): "channels", _("none"): "none"}
        return aligned(
            self._choice("sparsity", _("pruning"), kinds, 128),
            self._number("update_freq", _("new masks every, steps"), 170, pmui.IntInput),
            self._number("prune_ratio", _("share of channels to remove"), 190, pmui.FloatInput),
            self._tick("ascend_optimized", _("keep multiples of 16")),
            self._tick("quantise", _("quantise")),
        )

    def more(self) -> Any:
        """The others, for a fold."""
        optimizers = {"AdamW": "adamw", "SGD": "sgd"}
        schedules = {
            _("cosine"): "cosine", _("one cycle"): "one_cycle", _("constant"): "constant"
        }  # fmt: skip
        whole, number = pmui.IntInput, pmui.FloatInput
        return aligned(
            self._choice("optimizer", _("optimiser"), optimizers, 120),
            self._choice("schedule", _("schedule"), schedules, 120),
            self._number("weight_decay", _("weight decay"), 120, number),
            self._number("clip_rate", _("clip rate, ×"), 110, number),
            self._number("gradient_clip", _("gradient clip"), 118, number),
            self._number("patience", _("patience"), 96, whole),
            self._number("evaluate_every", _("evaluate, steps"), 124, whole),
            self._number("checkpoint_every", _("checkpoint, steps"), 136, whole),
            self._number("seed", _("seed"), 90, whole),
            margin=(8, 0),
        )

    def _number(self, name: str, label: str, width: int, kind: Any) -> Any:
        extra = {"format": "0.[0000000]"} if kind is pmui.FloatInput else {}
        return self._where_taken(
            name,
            kind.from_param(
                self.param[name], label=label, width=width, size="small", margin=0, **extra
            ),
        )

    def _choice(self, name: str, label: str, options: dict[str, str], width: int) -> Any:
        chooser = pmui.Select(
            label=label, options=options, value=getattr(self, name), width=width, size="small",
            margin=0,
        )  # fmt: skip
        chooser.link(self, value=name, bidirectional=True)
        return self._where_taken(name, chooser)

    def _tick(self, name: str, label: str) -> Any:
        box = pmui.Checkbox.from_param(
            self.param[name], label=label, size="small", margin=0
        )  # fmt: skip
        return self._where_taken(name, box)

    def _where_taken(self, name: str, control: Any) -> Any:
        """Show the control of a setting while the chosen method has it."""

        def follow(*_events: Any) -> None:
            control.visible = name in self.taken()

        follow()
        self.param.watch(follow, ["method", "sparsity", "quantise"])
        return control
