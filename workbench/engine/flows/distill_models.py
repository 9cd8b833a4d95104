"""Teacher and student while they are distilled: modes, the reference's write-back, processes.

Source: specification chapter 50, D1, D11 and D12, index decision 26.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from workbench.engine.errors import WrongState
from workbench.engine.flows.distill_student import student_layers
from workbench.engine.modules.qat.quantisers import mean_over_ranks

_SHOWN = 5


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Everything in eval mode inside, and as it was afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # Quantised layers bring the scales in their state up to date (D11).
        model.eval()
        for module, training in flags:
            module.training = training


@contextmanager
def written_back(student: nn.Module) -> Iterator[None]:
    """The reference's weight write-back: what a forward used replaces the weight (D1)."""

    def write(module: Any, args: Any, output: Any) -> None:
        with torch.no_grad():
            module.weight.copy_(module.quantise_weight("wts_", module.weight))

    handles = [layer.register_forward_hook(write) for layer in student_layers(student).values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def require_same_network(teacher: nn.Module, student: nn.Module) -> None:
    """Raise ``WrongState`` listing the teacher's parameters that the student has not, or others."""
    own = dict(student.named_parameters(remove_duplicate=False))
    wrong = []
    for name, parameter in teacher.named_parameters(remove_duplicate=False):
        if name not in own:
            wrong.append(f"{name} is missing in the student")
        elif own[name].shape != parameter.shape:
            wrong.append(
                f"{name} is {list(parameter.shape)} in the teacher, {list(own[name].shape)} in the "
                "student"
            )
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise WrongState(
            f"model and compress_model are different networks: {'; '.join(wrong[:_SHOWN])}{more}",
            where="distill()",
            hint="Give the student that create_distill_model made of this model.",
        )


def require_equal_lengths(batches: int, device: torch.device) -> None:
    """Raise ``WrongState`` where the processes would not take equally many steps."""
    count = torch.tensor([batches, batches**2], dtype=torch.float64, device=device)
    mean, squares = mean_over_ranks(count).tolist()
    if squares - mean**2 > 1e-9 * squares:
        raise WrongState(
            f"the processes read different numbers of batches; this one {batches}",
            where="train_loader",
            hint="Use a DistributedSampler, which gives every process as many.",
        )


@torch.no_grad()
def average_clips(student: nn.Module) -> None:
    """Give all processes the mean of the ranges that each found on its own data."""
    for layer in student_layers(student).values():
        for clip in layer.clips("acts_"):
            clip.copy_(mean_over_ranks(clip.detach()))
