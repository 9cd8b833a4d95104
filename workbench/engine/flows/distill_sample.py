"""From an item of a data loader to the model's inputs (specification chapter 50 section 8.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workbench.engine.errors import WrongState, WrongValue
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
