"""What the Train tab says: before a training, while it is stopped, and when it is done."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.app.i18n import _
from workbench.charts import formats
from workbench.charts.words import method_title
from workbench.studio.kept_weights import KeptWeights
from workbench.studio.pruning_state import Shrunk
from workbench.studio.state import Summary
from workbench.studio.training_state import PLAIN, TrainingState


def invitation(method: str, *, ticked: int, pruned: int) -> str:
    """What a training by ``method`` would do.

    ``ticked`` layers are ticked for training, ``pruned`` for pruning.
    """
    quantised = _(
        "Trains with quantisation in the loop: {count} layers are ticked for it in Layers "
        "(column “train”)."
    ).format(count=ticked)
    which = _("All layers that can be pruned are.")
    if pruned:
        which = _("Only the {count} layers ticked in Layers (column “prune”) are pruned.").format(
            count=pruned
        )
    texts = {
        "finetune": _(
            "Trains the float model as it is: what brings the accuracy back after pruning and "
            "decomposition. The weights can then become the project's."
        ),
        "sparse": _(
            "Keeps two of every four weights along the input channels, and trains what stays. "
            "It is milder than removing channels, and needs hardware that skips zeros to be faster."
        ),
        "compressed": _("Prunes and quantises in one training, layer by layer."),
    }
    if method not in texts:
        return quantised
    return " ".join([texts[method], *([] if method == "finetune" else [which])])


def result(training: TrainingState, summary: Summary, origin: Shrunk | None = None) -> str:
    """What a finished training came to; ``origin``: what the model was made smaller of."""
    name = summary.metric_name
    figure = f"{formats.metric_title(name)} {formats.metric(training.metric, name)}"
    delta = formats.metric_delta(summary.metric_float, training.metric, name)
    if delta and training.method == "finetune":  # the float model is the one before
        figure += " " + _("({delta} by the training)").format(delta=delta)
    elif delta:
        figure += " " + _("({delta} against float)").format(delta=delta)
    parts = [figure]
    before = formats.metric_delta(training.metric_before, training.metric, name)
    if before and training.method != "finetune":
        parts.append(
            _("{metric} before the training").format(
                metric=formats.metric(training.metric_before, name)
            )
        )
    if origin is not None and training.method in PLAIN:
        parts.append(
            _("{metric} before it was made smaller").format(
                metric=formats.metric(origin.metric[0], origin.metric_name)
            )
        )
    parts.append(_("{count} layers trained").format(count=training.layers))
    masked = sum(row.density < 1.0 for row in training.masks)
    if masked:
        parts.append(_("{count} with a 2:4 mask").format(count=masked))
    parts.append(_("{count} steps").format(count=training.steps))
    parts.append(formats.duration(training.seconds))
    if training.stopped_early:
        parts.append(_("stopped early: it gained nothing more"))
    if training.best_step != training.steps:
        parts.append(_("the weights are those after step {step}").format(step=training.best_step))
    return " · ".join(parts)


def kept_sentence(weights: Sequence[KeptWeights], name: str) -> str:
    """Which weights the model has, if they are not those it came with."""
    if not weights:
        return ""
    last = weights[-1]
    if not last.method:
        return _("The model has the weights of another file.")
    return _("The model has the weights of a training ({method}, {metric}).").format(
        method=method_title(last.method), metric=formats.metric(last.metric, name)
    )
