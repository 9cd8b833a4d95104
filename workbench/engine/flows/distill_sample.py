"""From an item of a data loader to the model's inputs (specification chapter 50 section 8.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from workbench.engine.errors import WorkbenchError, WrongState, WrongValue
from workbench.engine.flows.distill_ranges import StudentRanges
from workbench.engine.flows.training_data import to_device


class DistillSampleBase:
    """Base of samplers: a subclass says what of a loader's item the model is called with."""

    @staticmethod
    def get_model_input_data(samples: Any) -> Any:
        """The model's input: one tensor, or a list or tuple of its positional inputs."""
        raise NotImplementedError("a sampler must define get_model_input_data(samples)")


class ModelSingleTensorInput(DistillSampleBase):
    """For models with one input: a tensor as it is, of a list or tuple the first element."""

    @staticmethod
    def get_model_input_data(samples: Any) -> Any:
        """Raises ``ValueError`` for an empty list and for anything that is no tensor."""
        first = samples[0] if isinstance(samples, list | tuple) and samples else samples
        if not isinstance(first, Tensor):
            raise WrongValue(
                f"an item of the loader begins with a {type(first).__name__}; allowed: a tensor",
                where="ModelSingleTensorInput",
                hint="Write a sampler (a subclass of DistillSampleBase) for such data.",
            )
        return first


def model_inputs(
    sampler: DistillSampleBase, samples: Any, device: torch.device
) -> tuple[Tensor, ...]:
    """The positional inputs that ``sampler`` makes of a loader's item, on ``device``.

    Raises ``WrongState`` (``RuntimeError``) when it makes anything but tensors.
    """
    given = sampler.get_model_input_data(samples)
    inputs = tuple(given) if isinstance(given, list | tuple) else (given,)
    wrong = [type(value).__name__ for value in inputs if not isinstance(value, Tensor)]
    if wrong or not inputs:
        kind = f"a {wrong[0]}" if wrong else "nothing"
        raise WrongState(
            f"get_model_input_data gave {kind}; allowed: a tensor, or a list or tuple of tensors",
            where=type(sampler).__name__,
        )
    on_device: tuple[Tensor, ...] = to_device(inputs, device)
    return on_device


@contextmanager
def naming_batch(
    number: int, inputs: tuple[Tensor, ...], student: StudentRanges | None
) -> Iterator[None]:
    """What a forward raises on a batch of the loader, as ``WrongValue`` with the batch's shapes.

    Beside them are the names and shapes of the inputs that ``student`` was made with.
    """
    try:
        yield
    except (WorkbenchError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        names = student.inputs if student is not None else ()
        shapes = [list(value.shape) for value in inputs]
        wanted = ""
        if student is not None and student.shapes:
            wanted = f"; create_distill_model was given {_named(names, student.shapes)}"
        raise WrongValue(
            f"the model does not take batch {number}: {_named(names, shapes)}{wanted} "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})",
            where="train_loader",
            hint="Give batches of the shape that the model takes, or a sampler that makes them so.",
        ) from error


def _named(names: Sequence[str], shapes: Sequence[Sequence[int]]) -> str:
    titles = [*names, *(f"input {i}" for i in range(len(names), len(shapes)))]
    return ", ".join(f"{title} {list(shape)}" for title, shape in zip(titles, shapes, strict=False))
