"""Training one group: its chain of the student against what the teacher's chain gives.

Source: specification chapter 50 section 8.2, D17 and D18.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workbench.engine.errors import TrainingDiverged, WrongState
from workbench.engine.events import (
    CancelToken,
    DistillGroupFinished,
    DistillGroupStarted,
    DistillStep,
    OnEvent,
    check,
    emit,
)
from workbench.engine.flows.distill_blocks import Block, BlockSource, Chains, run_chain
from workbench.engine.flows.distill_optimiser import GroupOptimiser, Rates
from workbench.engine.modules.qat.quantisers import mean_over_ranks

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class GroupReport:
    """What training one group came to; losses are means over all batches, no gradients.

    ``epoch_losses``: after each epoch; ``loss_after``: of the state the group was left in.
    ``teacher_share``: of the batches whose input was the teacher's.
    """

    names: tuple[str, ...]
    loss_before: float
    epoch_losses: tuple[float, ...]
    loss_after: float
    seconds: float
    teacher_share: float


@dataclass(frozen=True)
class GroupSettings:
    """How every group is trained; ``batches`` of them an epoch, in an order drawn from ``seed``."""

    epochs: int
    loss: nn.Module
    rates: Rates
    batches: int = 0
    keep_best: bool = True
    joint: bool = False
    seed: int = 0


class GroupTraining:
    """Trains the student's modules of one group; on any error they are as they were before."""

    def __init__(
        self,
        chains: Chains,
        group: int,
        source: BlockSource,
        settings: GroupSettings,
        *,
        on_event: OnEvent | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        self._names = chains.names[group]
        self._title = chains.title(group)
        self._modules = chains.student(group)
        self._group, self._groups = group, len(chains.names)
        self._source = source
        self._settings = settings
        self._on_event = on_event
        self._cancel = cancel
        self._tensors = _state(self._modules)

    def run(self) -> GroupReport:
        started = time.perf_counter()
        before = [tensor.detach().clone() for tensor in self._tensors]
        try:
            self._source.open(self._group, self._cancel)
            report = self._train(before, started)
            self._source.close_group()
        except BaseException:
            self._restore(before)
            raise
        return report

    def _train(self, before: list[Tensor], started: float) -> GroupReport:
        settings = self._settings
        first, share = self._evaluate("before training")
        emit(
            self._on_event,
            DistillGroupStarted(self._group, self._groups, self._names, first),
        )
        best, best_loss = before, first
        losses: list[float] = []
        optimiser = GroupOptimiser(self._modules, settings.rates, joint=settings.joint)
        generator = torch.Generator().manual_seed(settings.seed + self._group)
        try:
            for epoch in range(settings.epochs):
                order = torch.randperm(settings.batches, generator=generator).tolist()
                for step, batch in enumerate(order):
                    check(self._cancel)
                    loss = self._step(optimiser, self._source.block(batch), epoch, step)
                    emit(
                        self._on_event,
                        DistillStep(self._group, epoch, step, settings.batches, loss),
                    )
                losses.append(self._evaluate(f"after epoch {epoch + 1}")[0])
                if losses[-1] < best_loss:
                    best_loss = losses[-1]
                    best = [tensor.detach().clone() for tensor in self._tensors]
        finally:
            optimiser.close()
        after = losses[-1]
        if settings.keep_best and after > best_loss:
            self._restore(best)
            after = best_loss
        report = GroupReport(
            self._names, first, tuple(losses), after, time.perf_counter() - started, share
        )
        emit(
            self._on_event,
            DistillGroupFinished(self._group, self._groups, self._names, first, after),
        )
        return report

    def _step(self, optimiser: GroupOptimiser, block: Block, epoch: int, step: int) -> float:
        loss = self._loss(block)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._diverged(value, f"in epoch {epoch + 1}, step {step + 1}")
        optimiser.step(loss)
        return value

    def _evaluate(self, moment: str) -> tuple[float, float]:
        """Mean loss over all batches, and the share of them whose input is the teacher's."""
        total, chosen = 0.0, 0
        for batch in range(self._settings.batches):
            check(self._cancel)
            block = self._source.block(batch)
            with torch.no_grad():
                total += float(self._loss(block))
            chosen += block.from_teacher
        mean = torch.tensor(total / self._settings.batches, dtype=torch.float64)
        if self._settings.joint:
            mean = mean_over_ranks(mean)
        if not math.isfinite(float(mean)):
            raise self._diverged(float(mean), moment)
        return float(mean), chosen / self._settings.batches

    def _loss(self, block: Block) -> Tensor:
        result = run_chain(self._modules, block.value)
        if result.numel() != block.target.numel():
            raise WrongState(
                f"the student gives {tuple(result.shape)}, the teacher {tuple(block.target.shape)}",
                where=self._title,
                hint="Teacher and student must be the same network.",
            )
        target = block.target.reshape(result.shape)
        if result.dtype in _HALF:
            # A squared error overflows float16 at 256.
            result, target = result.float(), target.float()
        loss: Tensor = self._settings.loss(result, target)
        return loss

    def _diverged(self, loss: float, moment: str) -> TrainingDiverged:
        lost = [
            f"{name}.{own}"
            for name, module in zip(self._names, self._modules, strict=True)
            for own, parameter in module.named_parameters()
            if not bool(torch.isfinite(parameter.detach()).all())
        ]
        # A clip bound goes first: the weights behind it follow in the next step.
        first = min(lost, key=lambda name: "clip" not in name, default="")
        cause = f"; {first} went first" if first else ""
        return TrainingDiverged(
            f"the loss is {loss} {moment}{cause}",
            where=self._title,
            layer=first.rpartition(".")[0],
            hint="The group is as it was before, and those before it are trained. Try a lower lr.",
        )

    @torch.no_grad()
    def _restore(self, state: list[Tensor]) -> None:
        for tensor, kept in zip(self._tensors, state, strict=True):
            tensor.copy_(kept)


def _state(modules: Sequence[nn.Module]) -> list[Tensor]:
    """Parameters and buffers of the modules, each once."""
    tensors = {
        id(tensor): tensor
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    }
    return list(tensors.values())
