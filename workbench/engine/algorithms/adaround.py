"""AdaRound: learn for each weight whether to round down or up, so that the layer's output stays.

Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (2020);
specification chapter 10 section 8.2, D6 and D7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.engine.errors import WrongState
from workbench.engine.files.config import WeightParams
from workbench.engine.numerics.integer import int_range

ZETA, GAMMA = 1.1, -0.1
"""The sigmoid is stretched to this interval and cut to [0, 1], so that it reaches both ends."""

_aten = torch.ops.aten

BATCH = 32
LEARNING_RATE = 1e-2
"""Ten times the reference's: after 2,000 steps a 4-bit convolution errs a seventh less."""

REFERENCE_LEARNING_RATE = 1e-3


def initial_alpha(fraction: Tensor) -> Tensor:
    """``alpha`` with ``h(alpha) = fraction``; ``fraction`` in [0, 1)."""
    return -torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1.0)


def rounding_share(alpha: Tensor) -> Tensor:
    """``h(alpha)`` in [0, 1]: 0 rounds down, 1 rounds up."""
    return torch.sigmoid(alpha).mul_(ZETA - GAMMA).add_(GAMMA).clamp_(0.0, 1.0)


def annealed_beta(step: int, settings: WeightParams) -> float:
    """The regulariser's exponent: at the start while warming up, then down to the end as a cosine.

    Large at first, so that only values near 0 and 1 are pulled; small at the end.
    """
    start, end = settings.beta_range
    warm = settings.warm_start * settings.num_iteration
    if step < warm:
        return start
    ratio = (step - warm) / (settings.num_iteration - warm)
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * ratio))


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean, over all axes but axis 1, of the squared L2 norm along axis 1 of the difference."""
    difference = output - target
    return difference.square().sum() / _positions(target)


def _positions(target: Tensor) -> int:
    return max(1, target.numel() // target.shape[1]) if target.numel() else 1


@dataclass(frozen=True)
class Samples:
    """What one layer reads and what it should give, the same samples along axis 0 of both.

    ``forward`` computes the layer and the activation folded into it from inputs and a weight.
    """

    inputs: Tensor
    targets: Tensor
    forward: Callable[[Tensor, Tensor], Tensor]


class SoftRounding:
    """The rounding of one weight while it is learned: ``alpha``, one value per weight.

    ``weight`` in its own layout, ``scale`` broadcastable to it. The soft weight is
    ``clip(floor(w / scale) + h(alpha)) * scale``. As clipping acts on whole codes it is done once:
    the code lies between ``clip(floor)`` and ``clip(floor + 1)``, which leaves
    ``lower * scale + h * step`` with ``step`` either 0 or ``scale``.
    """

    def __init__(
        self, weight: Tensor, scale: Tensor, bits: int, *, learning_rate: float = LEARNING_RATE
    ) -> None:
        low, high = int_range(bits)
        quotient = weight.detach().to(torch.float32) / scale
        floor = quotient.floor()
        self.alpha = initial_alpha(quotient.sub_(floor))
        self._lower = floor.clamp(low, high)
        self._scale = scale
        self._step = floor.add_(1.0).clamp_(low, high).sub_(self._lower).mul_(scale)
        self._base = self._lower * scale
        # Memory used again by every step: fresh memory costs more than the arithmetic.
        empty = [torch.empty_like(self.alpha) for _ in range(6)]
        self._sigmoid, self._stretched, self._share, self._centred, self._power, soft = empty
        self._soft = soft.requires_grad_()
        self._adam = torch.optim.Adam([self.alpha], lr=learning_rate, fused=True)

    def soft_weight(self) -> Tensor:
        """The soft weight, a leaf that a gradient can be taken for; written anew by each call."""
        with torch.no_grad():
            torch.sigmoid(self.alpha, out=self._sigmoid)
            torch.mul(self._sigmoid, ZETA - GAMMA, out=self._stretched).add_(GAMMA)
            torch.clamp(self._stretched, 0.0, 1.0, out=self._share)
            torch.addcmul(self._base, self._share, self._step, out=self._soft.detach())
        return self._soft

    @torch.no_grad()
    def update(self, gradient: Tensor, regularisation: float, beta: float) -> float:
        """One step of Adam; ``gradient`` is for the soft weight, and used up.

        Returns the rounding loss ``regularisation * sum(1 - |2 h - 1|^beta)``.
        """
        gradient.mul_(self._step)
        loss = 0.0
        if regularisation:
            centred = torch.mul(self._share, 2.0, out=self._centred).sub_(1.0)
            # As exp(log) it takes a third of the time of pow; log(0) gives 0 as it should.
            power = torch.abs(centred, out=self._power).log_().mul_(beta - 1.0)
            power.exp_().copysign_(centred)
            # power is |u|^(beta-1) sign(u), so its product with u sums to |u|^beta.
            kept = float(torch.dot(power.view(-1), centred.view(-1)))
            loss = regularisation * (self.alpha.numel() - kept)
            gradient.add_(power, alpha=-2.0 * beta * regularisation)
        # Through the cut to [0, 1], the stretching and the sigmoid.
        _aten.hardtanh_backward(gradient, self._stretched, 0.0, 1.0, grad_input=gradient)
        _aten.sigmoid_backward(gradient.mul_(ZETA - GAMMA), self._sigmoid, grad_input=gradient)
        self.alpha.grad = gradient
        self._adam.step()
        return loss

    def codes(self) -> Tensor:
        """The decision: integer codes held in float32; ``h > 0.5`` rounds up."""
        up = (self.alpha > 0.0) & (self._step != 0.0)
        return self._lower + up

    def hard_weight(self) -> Tensor:
        """``codes() * scale``."""
        return self.codes().mul_(self._scale)


def tune(
    rounding: SoftRounding,
    samples: Sequence[Samples],
    settings: WeightParams,
    generator: torch.Generator,
    *,
    where: str,
    on_step: Callable[[int, float], None],
) -> None:
    """Learn ``rounding`` in ``settings.num_iteration`` steps of 32 random samples each.

    ``samples``: groups of equal shapes; a step draws from one of them, each as often as it has
    samples. ``on_step`` gets the steps done and the loss, and may raise to stop. Raises
    ``RuntimeError`` naming ``where`` when the loss is not finite.
    """
    batches = [_Minibatches(group, generator) for group in samples]
    sizes = torch.tensor([float(len(group.inputs)) for group in samples])
    warm = settings.warm_start * settings.num_iteration
    for step in range(settings.num_iteration):
        chosen = 0
        if len(batches) > 1:
            chosen = int(torch.multinomial(sizes, 1, generator=generator))
        inputs, targets = batches[chosen].draw()
        weight = rounding.soft_weight()
        with torch.enable_grad():
            output = samples[chosen].forward(inputs, weight)
        difference = output.detach() - targets
        flat = difference.reshape(-1)
        loss = float(torch.dot(flat, flat)) / _positions(targets)
        (gradient,) = torch.autograd.grad(
            output, weight, difference.mul_(2.0 / _positions(targets))
        )
        regularisation = settings.reg_param if step >= warm else 0.0
        loss += rounding.update(gradient, regularisation, annealed_beta(step, settings))
        if not math.isfinite(loss):
            raise WrongState(
                f"the loss of its rounding is not finite at step {step + 1} ({loss})",
                where=where,
                hint="Check the calibration data, or use arq_quantize for this layer.",
            )
        on_step(step + 1, loss)


class _Minibatches:
    """Random samples of one group, gathered into memory that is used again."""

    def __init__(self, group: Samples, generator: torch.Generator) -> None:
        self._group = group
        self._generator = generator
        self._all = len(group.inputs) <= BATCH
        if not self._all:
            self._inputs = torch.empty_like(group.inputs[:BATCH])
            self._targets = torch.empty_like(group.targets[:BATCH])

    def draw(self) -> tuple[Tensor, Tensor]:
        inputs, targets = self._group.inputs, self._group.targets
        if self._all:
            return inputs, targets
        order = torch.randperm(len(inputs), generator=self._generator)[:BATCH].to(inputs.device)
        torch.index_select(inputs, 0, order, out=self._inputs)
        torch.index_select(targets, 0, order, out=self._targets)
        return self._inputs, self._targets
