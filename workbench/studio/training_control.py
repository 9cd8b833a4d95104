"""Training as a user of a session asks for it; part of a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from workbench.engine.errors import WrongState, WrongType, WrongValue
from workbench.studio.training_state import TrainingState

DISTILL_SAMPLES = 512
RATES = {"qat": 3e-4, "distill": 1e-3}
"""Learning rates: what fine-tunes a trained network within two epochs without hurting it first."""


class Trainable(Protocol):
    """Of a session, what training needs."""

    training: TrainingState | None
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
        wait: bool = True,
        **settings: Any,
    ) -> None:
        """Train the layers whose ``retrain_enable`` is on; ``training`` and ``curves`` follow.

        ``method``: 'qat' trains weights and clip bounds together, with quantisation in the loop;
        'distill' trains block after block against the float model's blocks: little data, no labels,
        and of the settings only epochs, learning_rate and seed.
        ``learning_rate``: by default 3e-4 for 'qat', 1e-3 for 'distill'.
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

        The evaluation data judges after each epoch, and the weights it judged best stay: with many
        epochs that flatters their metric a little.

        Checkpoints are kept in the project: a training that was stopped, or whose process was
        killed, goes on with ``resume_training``, to the same result.
        """
        from workbench.studio.training import settings_of

        _check_counts(batch_size, samples)
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
