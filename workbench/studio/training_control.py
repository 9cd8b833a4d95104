"""Training as a user of a session asks for it; part of a session."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol

from workbench.engine.errors import WrongState, WrongType, WrongValue
from workbench.studio.kept_weights import KeptWeights
from workbench.studio.masks import Weights, masked_weights
from workbench.studio.project import Project
from workbench.studio.training_state import COMPRESSING, TrainingState

DISTILL_SAMPLES = 512
RATES = {"qat": 3e-4, "distill": 1e-3, "finetune": 1e-3, "sparse": 1e-3, "compressed": 1e-3}
"""Learning rates: what fine-tunes a network within two epochs without hurting it first."""


class Trainable(Protocol):
    """Of a session, what training needs."""

    training: TrainingState | None
    weights: tuple[KeptWeights, ...]
    project: Project
    _manager: Any

    def start(self, kind: str, *, wait: bool = False, **args: Any) -> None: ...
    def poll(self) -> bool: ...
    def _keep_live(self, name: str, value: Any) -> Any: ...


class TrainingControl:
    """Train, resume; ``cancel`` stops, with a checkpoint at the step that was reached."""

    def train(
        self: Trainable,
        method: str = "qat",
        *,
        epochs: int = 2,
        learning_rate: float | None = None,
        batch_size: int = 64,
        samples: int | None = None,
        loss: str = "auto",
        recipe: Callable[[Any], Any] | str | None = None,
        loop: Callable[[Any, Any, Any], None] | str | None = None,
        sparsity: str | None = None,
        update_freq: int | None = None,
        prune_ratio: float | None = None,
        ascend_optimized: bool | None = None,
        quantise: bool | None = None,
        wait: bool = True,
        **settings: Any,
    ) -> None:
        """Train the project's model; ``training`` and ``curves`` follow.

        ``method``: 'qat' trains weights and clip bounds of the layers whose ``retrain_enable`` is
        on, with quantisation in the loop;
        'distill' trains block after block against the float model's blocks: little data, no labels,
        and of the settings only epochs, learning_rate and seed;
        'finetune' trains the float model, as a pruned or decomposed one needs it;
        'sparse' gives layers 2:4 sparsity, two of every four weights stay;
        'compressed' prunes and quantises in one training, layer by layer as the table says.
        'finetune' and 'sparse' leave other weights, which ``use_weights`` makes the project's.
        ``learning_rate``: by default 3e-4 for 'qat', else 1e-3.
        ``batch_size`` is for an example's or stored data; a loader has its own. ``samples``: about
        so many an epoch, 0: all; by default 512 for 'distill', which keeps what every block reads
        and gives, and all for 'qat'. ``loss``:
        'cross_entropy' or 'mse' with the targets of the training data, 'float': with the float
        model's outputs, which needs no labels; 'auto': as the data allows. ``settings``: any of
        ``workbench.engine.TrainingSettings``: optimizer, schedule, patience, checkpoint_every, …

        A recipe or loop of your own gets the batches as your loader yields them.
        ``recipe(model)`` returns how to train it: an object with ``training_step(batch, index)``
        and ``configure_optimizers()``, a LightningModule for example, or a function ``step(model,
        batch, index) -> loss``. ``loop(model, loader, report)`` does all of it itself and calls
        ``report(loss)`` after each step. Both can be named as ``package.module:name``.

        Of 'sparse' and 'compressed': ``update_freq``, steps between two choices of the 2:4 masks
        (default 0: once). Of 'compressed': ``sparsity``, '2:4' (default), 'channels' or 'none';
        ``quantise``, with quantisers (default) or without; for channels ``prune_ratio`` of each
        layer (default 0.2) and ``ascend_optimized``, whether multiples of 16 stay (default). Where
        ``prune_enable`` is on for layers, only these are pruned, by their own ``prune_ratio``.

        The evaluation data judges after each epoch, and the weights it judged best stay: with many
        epochs that flatters their metric a little.

        Checkpoints are kept in the project: a training that was stopped, or whose process was
        killed, goes on with ``resume_training``, to the same result.

        Errors: ``WrongState`` for a model that was opened from a ``.pt2`` or ONNX file.
        """
        from workbench.studio.compression_config import compression_for
        from workbench.studio.training import settings_of

        no_training = self.project.source.no_training
        if no_training is not None:
            raise no_training
        _check_counts(batch_size, samples)
        named = {
            "sparsity": sparsity, "update_freq": update_freq, "prune_ratio": prune_ratio,
            "ascend_optimized": ascend_optimized, "quantise": quantise,
        }  # fmt: skip
        compression = {name: value for name, value in named.items() if value is not None}
        compression_for(method, compression)
        if recipe is not None and loop is not None:
            raise WrongValue(
                "recipe and loop are both given",
                where="train",
                hint="A loop does all of it itself; give one of the two.",
            )
        if samples is None:
            samples = DISTILL_SAMPLES if method == "distill" else 0
        rate = RATES.get(method, 1e-3) if learning_rate is None else learning_rate
        given = {"epochs": epochs, "learning_rate": rate, **settings}
        self.start(
            "train",
            wait=wait,
            method=method,
            batch_size=batch_size,
            samples=samples,
            loss=loss,
            settings=settings_of(given),
            recipe=self._keep_live("recipe", recipe),
            loop=self._keep_live("loop", loop),
            **({"compression": compression} if method in COMPRESSING else {}),
        )

    def resume_training(self: Trainable, *, wait: bool = True) -> None:
        """Go on with the project's last training from its newest checkpoint.

        Errors: ``WrongState`` when there is none that was stopped.
        """
        self.poll()
        training = self.training
        if training is None or not training.can_resume:
            raise WrongState(
                "there is no stopped training to resume",
                where="train",
                hint="Start one with train(); one that is finished can only be begun anew.",
            )
        self.start("train", wait=wait, **{**training.asked, "resume": True})

    def use_weights(
        self: Trainable, path: str | os.PathLike[str] | None = None, *, wait: bool = True
    ) -> None:
        """Give the project's model the weights of the last training, or those of a file.

        For 'finetune' and 'sparse'; from then on they are its float weights, and everything is
        measured anew. ``take_back_weights`` undoes it, trials and exports included. ``path``: a
        state dict of the same model, ``.safetensors`` or what ``torch.save(model.state_dict(),
        path)`` wrote.
        """
        target = None if path is None else os.path.abspath(os.fspath(path))
        self.start("weights", wait=wait, path=target, back=False)

    def take_back_weights(self: Trainable, *, wait: bool = True) -> None:
        """The weights before the last ``use_weights`` again, and what was found out about them.

        Trials and exports since then go. Errors: ``WrongState`` if there are none.
        """
        self.poll()
        if not self.weights:
            raise WrongState(
                "the model has the weights it came with",
                where="weights",
                hint="use_weights() gives it those of a training.",
            )
        self.start("weights", wait=wait, back=True)

    def masked_weights(self: Trainable, name: str) -> Weights | None:
        """(before, after) of a layer with a 2:4 mask, [outputs, inputs]; None without one."""
        training = self.training
        if training is None:
            return None
        return masked_weights(self.project, training.method, training.masks, name)

    def _keep_live(self: Trainable, name: str, value: Any) -> Any:
        """What the job's arguments say of ``value``; the object itself stays in this process."""
        workspace = getattr(self._manager, "workspace", None)
        if value is None or isinstance(value, str):
            if workspace is not None:
                workspace.training.pop(name, None)
            return value
        if not callable(value):
            raise WrongType(
                f"{name} is a {type(value).__name__}, not a function",
                where="train",
                hint="It is called with the model that is to be trained.",
            )
        if workspace is None:
            raise WrongState(
                "a function lives in this process only, and the job runs in another",
                where=name,
                hint="Name it as package.module:name.",
            )
        workspace.training[name] = value
        return getattr(value, "__name__", type(value).__name__)


def _check_counts(batch_size: Any, samples: Any) -> None:
    pairs = (("batch_size", batch_size, 1), ("samples", 0 if samples is None else samples, 0))
    problems = [
        f"{name} is {value!r}; allowed: a whole number of at least {low}"
        for name, value, low in pairs
        if isinstance(value, bool) or not isinstance(value, int) or value < low
    ]
    if problems:
        raise WrongValue("; ".join(problems), where="train", hint="Correct these arguments.")
