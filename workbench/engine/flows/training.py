"""The training loop of every flow that trains: QAT, distillation by outputs, fine-tuning.

It knows nothing of quantisation beyond the names of clip bounds and weight scales, which learn at
rates of their own. A training that was interrupted goes on from its newest checkpoint to the very
result it would have had (same machine, versions and thread count).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from workbench.engine.errors import Cancelled, TrainingDiverged, WrongState, WrongValue
from workbench.engine.events import (
    CancelToken,
    CheckpointWritten,
    ClipsMoved,
    Evaluated,
    Notice,
    OnEvent,
    TrainStep,
    check,
    emit,
)
from workbench.engine.flows.training_checkpoint import (
    BEST,
    check_same_model,
    checkpoint_path,
    list_checkpoints,
    log,
    newest,
    read_checkpoint,
    remove_checkpoints,
    write_checkpoint,
)
from workbench.engine.flows.training_data import copy_of, device_of, epoch_length, to_device
from workbench.engine.flows.training_groups import ClipWatch
from workbench.engine.flows.training_guard import Guard, all_finite
from workbench.engine.flows.training_random import (
    generator_states,
    random_state,
    seeded,
    set_generator_states,
    set_random_state,
    untouched,
)
from workbench.engine.flows.training_recipe import Loss, make_recipe
from workbench.engine.flows.training_settings import TrainingSettings

Metric = Callable[[nn.Module], float]
"""``metric(model) -> float``, the model in evaluation mode; higher is better."""


@dataclass(frozen=True)
class TrainingResult:
    """What a training came to; ``metric`` and ``best_step`` are of the weights the model has.

    ``metric`` is None where none was given; ``stopped_early``: by ``patience``. ``checkpoint`` is
    the last one on disk, None without a folder.
    """

    steps: int
    metric: float | None
    best_step: int
    stopped_early: bool
    checkpoint: Path | None


@dataclass(frozen=True)
class _Position:
    """After ``step`` steps: ``batch`` batches of ``epoch`` are done.

    ``settled``: what belongs to the end of the step (evaluation, checkpoint) is done too. ``best``
    is the highest metric so far, at ``best_step``; ``waited`` evaluations have not beaten it.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    settled: bool = True
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    stopped: bool = False


def fit(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    loss: Loss | None = None,
    teacher: nn.Module | None = None,
    recipe: Any = None,
    metric: Metric | None = None,
    settings: TrainingSettings | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    identity: str = "",
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> TrainingResult:
    """Train ``model`` in place on the batches of ``loader``.

    ``loader`` is read once an epoch and yields (inputs, target) or inputs; its ``set_epoch``, or
    its sampler's, is called before each. ``loss(output, target)``; with a ``teacher`` the target is
    the teacher's output for the same inputs and the loss by default the mean squared error.
    ``recipe`` is a step of your own (see ``training_recipe.make_recipe``), a LightningModule
    included; what it holds besides ``model`` is not in the checkpoints. ``metric``: with one the
    model ends with the weights that it was highest for.

    ``folder`` keeps checkpoints, one of the untrained model among them. ``resume`` goes on from the
    newest one, if there is any; without it those of an earlier training are removed. ``identity``
    is stored in them: what else the result depends on, a configuration's hash for example.

    The model ends in evaluation mode. A cancel is obeyed after a step, with a checkpoint there.
    Errors: ``WrongValue`` for settings, a loader that yields nothing; ``WrongState`` for a
    checkpoint of another model, configuration or loader; ``TrainingDiverged`` when loss or
    gradients are not finite: the model is then as at the last good checkpoint; ``Cancelled``.
    """
    settings = settings or TrainingSettings()
    device = device_of(model)
    with seeded(settings.seed, device):
        return _Loop(
            model, loader, settings, device,
            recipe={"loss": loss, "teacher": teacher, "recipe": recipe},
            metric=metric, folder=None if folder is None else Path(folder), identity=identity,
            on_event=on_event, cancel=cancel,
        ).run(resume)  # fmt: skip


class _Loop:
    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        settings: TrainingSettings,
        device: torch.device,
        *,
        recipe: dict[str, Any],
        metric: Metric | None,
        folder: Path | None,
        identity: str,
        on_event: OnEvent | None,
        cancel: CancelToken | None,
    ) -> None:
        self.model, self.loader, self.settings, self.device = model, loader, settings, device
        self.metric, self.folder, self.identity = metric, folder, identity
        self.on_event, self.cancel = on_event, cancel
        self.epoch_length = epoch_length(loader, device)
        self.steps = self.epoch_length * settings.epochs
        self.teacher = recipe["teacher"]
        self.recipe = make_recipe(model, settings, self.steps, **recipe)
        self.clips = ClipWatch(model)
        self.guard = Guard(model)
        self.at = _Position()
        self.epoch_random: dict[str, Any] | None = None
        self.epoch_generators: list[Tensor] = []
        self.good: dict[str, Any] = {}
        self.good_step = 0
        self.best: dict[str, Any] = {}

    # -- the loop -----------------------------------------------------------------------------

    def run(self, resume: bool) -> TrainingResult:
        if self.teacher is not None:
            self.teacher.eval()
        found = newest(self.folder) if resume and self.folder is not None else None
        if found is not None:
            self.restore(found)
        else:
            if self.folder is not None and list_checkpoints(self.folder):
                log.warning("the checkpoints of an earlier training in %s go", self.folder)
                remove_checkpoints(self.folder)
            self.keep_state()
        try:
            while self.at.epoch < self.settings.epochs and not self.at.stopped:
                self.epoch()
        except Cancelled:
            self.keep_state()
            raise
        return self.finish()

    def epoch(self) -> None:
        self.model.train()
        batches = self.open_epoch()
        if not self.at.settled:
            self.settle()
        nothing = object()
        # Checked before a batch is drawn, so that the checkpoint of a cancel comes before it too.
        while not self.at.stopped:
            check(self.cancel)
            batch = next(batches, nothing)
            if batch is nothing:
                break
            self.train_step(to_device(batch, self.device))
            self.settle()
        if self.at.stopped:
            return
        if self.at.batch == 0:
            raise WrongValue(
                "the loader yields nothing",
                where="loader",
                hint="It must yield at least one batch, and can be read once an epoch.",
            )
        self.end_epoch()

    def open_epoch(self) -> Iterator[Any]:
        """The rest of the epoch's batches, drawn as they would have been without interruption."""
        done = self.at.batch
        now = random_state(self.device)
        if done and self.epoch_random is not None:
            set_random_state(self.epoch_random, self.device)
            set_generator_states(self.loader, self.epoch_generators)
        else:
            self.epoch_random = now
            self.epoch_generators = generator_states(self.loader)
        places: tuple[Any, ...] = (self.loader, getattr(self.loader, "sampler", None))
        for place in places:
            if hasattr(place, "set_epoch"):
                place.set_epoch(self.at.epoch)
        batches = iter(self.loader)
        if done:
            skipped = sum(1 for _ in itertools.islice(batches, done))
            if skipped < done:
                raise WrongState(
                    f"the loader yields {skipped} batches an epoch, the interrupted training had "
                    f"read {done}",
                    where="loader",
                    hint="Resume with the loader of then, or train from the start.",
                )
            set_random_state(now, self.device)
        return batches

    def train_step(self, batch: Any) -> None:
        index, optimizer = self.at.batch, self.recipe.optimizer

        def compute() -> Tensor:
            with torch.autocast(
                self.device.type,
                dtype=torch.bfloat16,
                enabled=self.settings.precision == "bfloat16",
            ):
                return self.recipe.step(self.model, batch, index)

        rate = float(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad(set_to_none=True)
        try:
            loss = compute()
            torch.autograd.backward(loss)
        except (RuntimeError, ValueError) as error:
            # Layers refuse values that are not finite; that is a divergence like another.
            culprit = self.guard.culprit(batch, compute, None)
            if culprit is None:
                raise
            self.break_off(*culprit, error)
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in trained if p.grad is not None]
        if not all_finite(loss, gradients):
            overflow = "the norm of all gradients is infinite", ""
            self.break_off(*(self.guard.culprit(batch, compute, loss) or overflow), None)
        if self.settings.gradient_clip:
            torch.nn.utils.clip_grad_norm_(trained, self.settings.gradient_clip)
        optimizer.step()
        if self.recipe.schedule is not None and self.recipe.schedule.interval == "step":
            self.recipe.schedule.scheduler.step()
        self.at = replace(self.at, step=self.at.step + 1, batch=index + 1, settled=False)
        if self.on_event is not None:
            self.on_event(
                TrainStep(self.at.step, self.steps, self.at.epoch, float(loss.detach()), rate)
            )
            if self.clips:
                self.on_event(ClipsMoved(self.at.step, self.clips.read()))

    def break_off(self, what: str, layer: str, cause: Exception | None) -> NoReturn:
        """Put the last good state back and say what broke it."""
        broken, step = self.at.step + 1, self.at.step
        if self.folder is not None and (found := newest(self.folder)) is not None:
            self.model.load_state_dict(found["model"])
            step = found["position"]["step"]
        elif self.good:
            self.model.load_state_dict(self.good)
            step = self.good_step
        self.model.eval()
        if any(parameter.dtype == torch.float16 for parameter in self.model.parameters()):
            # Adam's epsilon and small gradients are 0 in it, large ones infinite.
            remedy = (
                "Its parameters are float16, whose range a training soon leaves: train "
                "model.float(), with precision='bfloat16' where it shall be fast, and call .half() "
                "afterwards."
            )
        elif layer:
            remedy = (
                "Try a lower learning rate or gradient_clip=1.0, or leave this layer out of the "
                "training."
            )
        else:
            remedy = "Check the data and the loss function."
        raise TrainingDiverged(
            f"step {broken} broke: {what}",
            where=layer or "loss",
            layer=layer,
            step=step,
            hint=f"The model is as it was after step {step}, the last good state. {remedy}",
        ) from cause

    # -- between steps ------------------------------------------------------------------------

    def settle(self) -> None:
        """What is due after a step, once: an evaluation, a checkpoint."""
        step, settings = self.at.step, self.settings
        if settings.evaluate_every and step % settings.evaluate_every == 0:
            self.evaluate()
        self.at = replace(self.at, settled=True)
        if settings.checkpoint_every and step % settings.checkpoint_every == 0:
            self.keep_state()

    def end_epoch(self) -> None:
        schedule = self.recipe.schedule
        metric = None if self.settings.evaluate_every else self.evaluate()
        if schedule is not None and schedule.interval != "step":
            if not schedule.needs_metric:
                schedule.scheduler.step()
            elif metric is not None:
                schedule.scheduler.step(metric)
        self.at = replace(self.at, epoch=self.at.epoch + 1, batch=0)
        self.epoch_random, self.epoch_generators = None, []
        if not self.settings.checkpoint_every:
            self.keep_state()

    def evaluate(self) -> float | None:
        """Measure the model as it is now, and see whether it is the best or it is time to stop."""
        if self.metric is None:
            return None
        self.model.eval()
        try:
            with untouched(self.device):
                value = float(self.metric(self.model))
        finally:
            self.model.train()
        best = self.at.best is None or value > self.at.best
        gained = self.at.best is None or value > self.at.best + self.settings.min_delta
        waited = 0 if gained else self.at.waited + 1
        if best:
            self.at = replace(self.at, best=value, best_step=self.at.step)
            self.keep_best()
        patience = self.settings.patience
        self.at = replace(self.at, waited=waited, stopped=bool(patience) and waited >= patience)
        emit(self.on_event, Evaluated(self.at.step, value, best))
        return value

    def finish(self) -> TrainingResult:
        if self.folder is not None and list_checkpoints(self.folder)[-1].step != self.at.step:
            self.keep_state()
        if self.at.best is not None and self.at.best_step != self.at.step:
            state = self.best or read_checkpoint(self._folder / BEST)["model"]
            self.model.load_state_dict(state)
        self.model.eval()
        files = [] if self.folder is None else list_checkpoints(self.folder)
        return TrainingResult(
            steps=self.at.step,
            metric=self.at.best,
            best_step=self.at.step if self.at.best is None else self.at.best_step,
            stopped_early=self.at.stopped,
            checkpoint=files[-1].path if files else None,
        )

    # -- checkpoints --------------------------------------------------------------------------

    @property
    def _folder(self) -> Path:
        assert self.folder is not None
        return self.folder

    def keep_best(self) -> None:
        if self.folder is None:
            self.best = copy_of(self.model.state_dict())
            return
        write_checkpoint(
            self.folder / BEST,
            {"model": self.model.state_dict(), "step": self.at.step, "metric": self.at.best},
        )

    def keep_state(self) -> None:
        """A checkpoint of this moment; without a folder the weights, to go back to."""
        if self.folder is None:
            self.good, self.good_step = copy_of(self.model.state_dict()), self.at.step
            return
        path = checkpoint_path(self.folder, self.at.step)
        schedule = self.recipe.schedule
        size = write_checkpoint(
            path,
            {
                "model": self.model.state_dict(),
                "optimizer": self.recipe.optimizer.state_dict(),
                "schedule": None if schedule is None else schedule.scheduler.state_dict(),
                "position": asdict(self.at),
                "random": random_state(self.device),
                "generators": generator_states(self.loader),
                "epoch_random": self.epoch_random,
                "epoch_generators": self.epoch_generators,
                "settings": asdict(self.settings),
                "identity": self.identity,
                "epoch_length": self.epoch_length,
            },
        )
        emit(self.on_event, CheckpointWritten(self.at.step, str(path), size))
        remove_checkpoints(self.folder, keep=self.settings.keep)

    def restore(self, found: dict[str, Any]) -> None:
        at = _Position(**found["position"])
        where = str(checkpoint_path(self._folder, at.step))
        check_same_model(found["model"], self.model.state_dict(), where=where)
        changed = self.settings.differences(found["settings"])
        if found["identity"] != self.identity:
            changed.append("the configuration is another one")
        if found["epoch_length"] != self.epoch_length:
            changed.append(
                f"the loader has {self.epoch_length} batches, had {found['epoch_length']}"
            )
        if changed:
            raise WrongState(
                f"the checkpoint is of another training: {'; '.join(changed)}",
                where=where,
                hint="Resume with the settings of then, or train from the start.",
            )
        self.model.load_state_dict(found["model"])
        self.recipe.optimizer.load_state_dict(found["optimizer"])
        if self.recipe.schedule is not None:
            self.recipe.schedule.scheduler.load_state_dict(found["schedule"])
        set_generator_states(self.loader, found["generators"])
        set_random_state(found["random"], self.device)
        self.epoch_random, self.epoch_generators = found["epoch_random"], found["epoch_generators"]
        self.at = at
        emit(self.on_event, Notice(f"resumed after step {at.step} of {self.steps}"))
