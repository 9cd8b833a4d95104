"""DMQ: factors that move a layer's outlier channels from the activation into the weight.

The activation is divided by one factor per input channel and the weight multiplied by it, so that
the product stays the same while both get easier to quantise. Source: chapter 10 section 10, D18.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.engine.errors import WrongState, WrongType, WrongValue
from workbench.engine.numerics.integer import FLT_EPSILON, as_float32

LOWEST, HIGHEST = FLT_EPSILON, 1.0 / FLT_EPSILON
"""Between these every factor must lie."""


def balance_factors(activation: Tensor, weight: Tensor, strength: float) -> Tensor:
    """One factor per input channel, float32 ``(Cin,)``, from both sides' largest magnitudes.

    ``activation`` and ``weight``: ``(Cin,)``, magnitudes per channel. ``strength`` in [0.2, 0.8]:
    the larger, the more goes into the weight. All ones when either side is zero everywhere.
    Raises ``ValueError`` for channel counts that disagree and ``RuntimeError`` for magnitudes that
    are not finite and for factors out of range.
    """
    if activation.shape != weight.shape:
        raise WrongValue(
            f"the activation has {activation.numel()} channels, the weight {weight.numel()}"
        )
    a, v = activation.to(torch.float64), weight.to(torch.float64)
    if not bool((torch.isfinite(a) & torch.isfinite(v)).all()):
        raise WrongState(
            "the activation or the weight holds inf or NaN",
            hint="Check the model's weights and data.",
        )
    empty_a, empty_v = a < FLT_EPSILON, v < FLT_EPSILON
    if bool(empty_a.all()) or bool(empty_v.all()):
        return torch.ones_like(a, dtype=torch.float32)
    raw = a**strength / v ** (1.0 - strength)
    regular = ~empty_v & (raw >= FLT_EPSILON)
    if not bool(regular.any()):
        # No channel carries both sides: nothing can be moved from one to the other.
        return torch.ones_like(a, dtype=torch.float32)
    largest_a = (a[regular] / raw[regular]).max()
    largest_v = (v[regular] * raw[regular]).max()
    factors = torch.where(empty_v, a / largest_a, raw)
    factors = torch.where(empty_a, largest_v / v, factors)
    factors = torch.where(empty_a & empty_v, torch.ones_like(a), factors).to(torch.float32)
    bad = torch.nonzero(~((factors > LOWEST) & (factors < HIGHEST))).reshape(-1)
    if bad.numel():
        channel = int(bad[0])
        raise WrongState(
            f"the balance factor of channel {channel} is {float(factors[channel]):.6g} (largest "
            f"activation {float(a[channel]):.6g}, largest weight {float(v[channel]):.6g}); "
            f"allowed: {LOWEST:.3g} to {HIGHEST:.3g}",
            hint="Remove dmq_balancer_param from this layer.",
        )
    return factors


def activation_magnitudes(x: Tensor, axis: int) -> Tensor:
    """Largest magnitude of each index of ``axis``: float32 ``(C,)``.

    Raises ``TypeError`` for integers and ``RuntimeError`` for inf and NaN.
    """
    if not x.is_floating_point():
        raise WrongType(f"a tensor of dtype {x.dtype} cannot be balanced; allowed: floating point")
    rows = x.detach().movedim(axis, 0).reshape(x.shape[axis], -1)
    if rows.shape[1] == 0:
        return torch.zeros(x.shape[axis], device=x.device)
    low, high = torch.aminmax(rows, dim=1)
    largest = torch.maximum(-low, high).to(torch.float32)
    if not bool(torch.isfinite(largest).all()):
        raise WrongState("an activation holds inf or NaN", hint="Check the calibration data.")
    return largest


def weight_magnitudes(weight: Tensor, *, transposed: bool, groups: int) -> Tensor:
    """Largest magnitude of each input channel of a layer's weight: float32 ``(Cin,)``."""
    values = as_float32(weight).abs()
    if not transposed:
        rows, columns = values.shape[:2]
        values = values.reshape(groups, rows // groups, columns, -1).transpose(1, 2)
        return values.reshape(groups * columns, -1).amax(1)
    return values.reshape(values.shape[0], -1).amax(1)


def balance_weight(weight: Tensor, factors: Tensor, *, transposed: bool, groups: int) -> Tensor:
    """The weight times the factors along its input channels, in float32 and its own layout.

    ``weight``: ``(Cout, Cin/groups, k...)``, transposed convolutions ``(Cin, Cout/groups, k...)``.
    """
    values = as_float32(weight)
    tail = (1,) * (values.dim() - 2)
    if transposed:
        return values * factors.reshape(-1, 1, *tail)
    rows = factors.reshape(groups, -1).repeat_interleave(values.shape[0] // groups, dim=0)
    return values * rows.reshape(*rows.shape, *tail)


def channel_axis(layer_type: str) -> int:
    """Axis of the input channels in a layer's input."""
    return -1 if layer_type == "Linear" else 1


def inverse_balance(factors: Tensor | tuple[float, ...], layer_type: str, rank: int) -> Tensor:
    """``1 / factors`` in float32, shaped to multiply an input of ``rank`` axes."""
    inverse = 1.0 / torch.as_tensor(factors, dtype=torch.float32)
    if channel_axis(layer_type) == -1:
        return inverse
    return inverse.reshape(1, -1, *((1,) * (rank - 2)))
