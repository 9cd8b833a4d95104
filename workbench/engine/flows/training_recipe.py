"""One training step, whoever wrote it: a loss function, a teacher, or a user's own module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.errors import WrongType, WrongValue
from workbench.engine.flows.training_groups import parameter_groups
from workbench.engine.flows.training_settings import TrainingSettings, multiplier

Loss = Callable[[Any, Any], Tensor]
"""``loss(output, target) -> scalar``."""

Step = Callable[[nn.Module, Any, int], Tensor]
"""``step(model, batch, index) -> scalar loss``, to be differentiated."""


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule and when it moves: after each 'step' or 'epoch', or by a metric."""

    scheduler: Any
    interval: str = "step"
    needs_metric: bool = False


@dataclass(frozen=True)
class Recipe:
    """How a batch becomes a loss, and what changes the parameters."""

    step: Step
    optimizer: torch.optim.Optimizer
    schedule: Schedule | None


def split_batch(batch: Any) -> tuple[tuple[Any, ...], Any]:
    """A loader's item as (positional inputs, target or None)."""
    if isinstance(batch, list | tuple):
        if len(batch) == 2:
            inputs, target = batch
            return (tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)), target
        return tuple(batch), None
    return (batch,), None


def supervised(loss: Loss) -> Step:
    """The model's output against the batch's target."""

    def step(model: nn.Module, batch: Any, index: int) -> Tensor:
        inputs, target = split_batch(batch)
        if target is None:
            raise WrongValue(
                f"batch {index} has no target",
                where="loader",
                hint="Yield (inputs, target), or give a teacher whose outputs are the targets.",
            )
        return loss(model(*inputs), target)

    return step


def against_teacher(teacher: nn.Module, loss: Loss) -> Step:
    """The model's output against the teacher's for the same inputs; targets are not looked at."""

    def step(model: nn.Module, batch: Any, index: int) -> Tensor:
        inputs, _ = split_batch(batch)
        with torch.no_grad():
            target = teacher(*inputs)
        return loss(model(*inputs), target)

    return step


def soft_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence of softmax(output) from softmax(target), classes in dim 1."""
    wanted = target.float().log_softmax(dim=1)
    found = output.float().log_softmax(dim=1)
    return torch.nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)


def default_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    groups = parameter_groups(model, settings)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups)


def default_schedule(
    optimizer: torch.optim.Optimizer, settings: TrainingSettings, steps: int
) -> Schedule | None:
    if settings.schedule == "constant":
        return None
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: multiplier(settings.schedule, step, steps)
    )
    return Schedule(scheduler)


def make_recipe(
    model: nn.Module,
    settings: TrainingSettings,
    steps: int,
    *,
    loss: Loss | None = None,
    teacher: nn.Module | None = None,
    recipe: Any = None,
) -> Recipe:
    """The recipe that ``fit`` was given, completed with the default optimiser and schedule.

    ``recipe``: a function ``step(model, batch, index) -> loss``, or an object as Lightning has
    them, with ``training_step(batch, index)`` and, if it likes, ``configure_optimizers()``.
    """
    if recipe is not None and (loss is not None or teacher is not None):
        raise WrongValue(
            "a recipe brings its own loss",
            where="recipe",
            hint="Give either recipe, or loss and teacher.",
        )
    if recipe is None:
        if teacher is None and loss is None:
            raise WrongValue(
                "there is no loss to train with",
                where="loss",
                hint="Give loss=torch.nn.CrossEntropyLoss(), a teacher, or a recipe.",
            )
        step = supervised(loss) if teacher is None and loss is not None else None
        if teacher is not None:
            step = against_teacher(teacher, loss or torch.nn.functional.mse_loss)
        assert step is not None
        return _with_defaults(model, settings, steps, step)
    if hasattr(recipe, "training_step"):
        step = _lightning_step(recipe)
        if hasattr(recipe, "configure_optimizers"):
            configured = recipe.configure_optimizers()
            if configured is not None:
                optimizer, schedule = _configured(configured)
                return Recipe(step, optimizer, schedule)
        return _with_defaults(model, settings, steps, step)
    if callable(recipe):
        return _with_defaults(model, settings, steps, recipe)
    raise WrongType(
        f"recipe is a {type(recipe).__name__}",
        where="recipe",
        hint="Allowed: a function step(model, batch, index) -> loss, or an object with "
        "training_step(batch, index).",
    )


def _with_defaults(model: nn.Module, settings: TrainingSettings, steps: int, step: Step) -> Recipe:
    optimizer = default_optimizer(model, settings)
    return Recipe(step, optimizer, default_schedule(optimizer, settings, steps))


def _lightning_step(recipe: Any) -> Step:
    def step(model: nn.Module, batch: Any, index: int) -> Tensor:
        found = recipe.training_step(batch, index)
        loss = found.get("loss") if isinstance(found, Mapping) else found
        if not isinstance(loss, Tensor):
            raise WrongType(
                f"training_step returned {type(found).__name__}, not a loss",
                where="recipe",
                hint="Return a scalar tensor, or a dictionary with the key 'loss'. Optimisation "
                "by hand inside of training_step is not followed.",
            )
        return loss

    return step


def _configured(found: Any) -> tuple[torch.optim.Optimizer, Schedule | None]:
    """What ``configure_optimizers`` returned: the forms Lightning knows, with one optimiser."""
    scheduler: Any = None
    if isinstance(found, Mapping):
        scheduler = found.get("lr_scheduler")
        found = found.get("optimizer")
    elif isinstance(found, list | tuple):
        if len(found) == 2 and isinstance(found[0], list | tuple):
            found, schedulers = found
            scheduler = schedulers[0] if schedulers else None
        if len(found) == 1:
            found = found[0]
    if not isinstance(found, torch.optim.Optimizer):
        raise WrongType(
            "configure_optimizers did not return one torch optimiser",
            where="recipe",
            hint="Several optimisers need a loop of your own.",
        )
    return found, _schedule(scheduler)


def _schedule(scheduler: Any) -> Schedule | None:
    if scheduler is None:
        return None
    interval = "epoch"
    if isinstance(scheduler, Mapping):
        interval = str(scheduler.get("interval", "epoch"))
        scheduler = scheduler.get("scheduler")
    needs = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
    return Schedule(scheduler, interval, needs)
