"""Layers of a model that goes through ``quantize``: weight errors and channels that stand out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from workbench.engine.algorithms.tokens import ChannelRanges
from workbench.engine.errors import WrongState
from workbench.engine.events import CancelToken, OnEvent, Progress, check, emit
from workbench.engine.flows.block_calibration import model_arguments
from workbench.engine.modules.quantize.base import CalibrationModule, named
from workbench.engine.modules.quantize.scaled import ScaledLinear
from workbench.engine.modules.quantize.smoothquant import SmoothQuant

OUTLIER = 6.0
"""A channel stands out when it is so many times as large as the median one."""


@dataclass(frozen=True)
class WeightError:
    """``relative``: Frobenius norm of the weight's error ÷ that of the weight.

    ``formats`` as in the quantisation report ("int8/int8", "–/int4").
    """

    name: str
    formats: str
    relative: float

    @property
    def sqnr_db(self) -> float:
        """Signal to quantisation noise in decibel; infinite without an error."""
        return -20 * math.log10(self.relative) if self.relative > 0 else math.inf


@dataclass(frozen=True)
class ChannelProfile:
    """Largest magnitudes of a Linear layer's input channels and of the weight columns they meet.

    ``factors``: what a calibrated smoothquant layer divides the inputs by; None: nothing does.
    All ``(K,)``.
    """

    name: str
    activation: NDArray[np.float64]
    weight: NDArray[np.float64]
    factors: NDArray[np.float64] | None = None

    @property
    def activation_after(self) -> NDArray[np.float64]:
        """Inputs as they are quantised."""
        return self.activation if self.factors is None else self.activation / self.factors

    @property
    def weight_after(self) -> NDArray[np.float64]:
        """Weight columns as they are quantised."""
        return self.weight if self.factors is None else self.weight * self.factors

    @property
    def outliers(self) -> tuple[int, ...]:
        """Input channels more than ``OUTLIER`` times as large as the median, largest first."""
        limit = OUTLIER * float(np.median(self.activation))
        order = np.argsort(-self.activation, kind="stable")
        return tuple(int(i) for i in order if self.activation[i] > limit)


def weight_errors(model: nn.Module) -> tuple[WeightError, ...]:
    """How far the weights of a calibrated model are from the float ones, layer by layer.

    Between ``quantize`` and ``convert``, when each layer knows both. Equalisation is undone first:
    what counts is the matrix that the inputs meet. Raises ``RuntimeError`` when a layer still waits
    for batches, and when there is none to look at.
    """
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, ScaledLinear):
            continue
        if module.calls_missing():
            raise WrongState(
                f"layer {name} is not calibrated yet",
                where="weight_errors()",
                hint="Run batches through the model first.",
            )
        exact = module.weight.detach().float()
        error = (_effective_weight(module) - exact).norm() / exact.norm().clamp_min(1e-30)
        found.append(WeightError(name, _formats(module), float(error)))
    if not found:
        raise WrongState(
            "the model has no calibrated Linear layer",
            where="weight_errors()",
            hint="Call it between quantize() and convert().",
        )
    return tuple(found)


@torch.no_grad()
def channel_profiles(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> tuple[ChannelProfile, ...]:
    """The input channels of every Linear layer over ``batches``, float or calibrating.

    ``batches`` as for ``calibrate_by_block``. A model between ``quantize`` and ``convert`` counts
    them as calibration; run those first. Layers that are never called are left out. Memory: two
    numbers a channel. Raises ``RuntimeError`` naming the layer when inputs hold inf or NaN.
    """
    layers: dict[str, nn.Linear | CalibrationModule] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        or (isinstance(module, CalibrationModule) and module.weight.dim() == 2)
    }
    ranges = {name: ChannelRanges(layer.weight.shape[1]) for name, layer in layers.items()}

    def watching(name: str) -> Any:
        def watch(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            with named(name):
                ranges[name].update(args[0].cpu())

        return watch

    hooks = [layer.register_forward_pre_hook(watching(name)) for name, layer in layers.items()]
    try:
        for done, batch in enumerate(batches, 1):
            check(cancel)
            args, kwargs = model_arguments(batch)
            model(*args, **kwargs)
            emit(on_event, Progress("channels", done, 0))
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(
        _profile(name, layer, ranges[name]) for name, layer in layers.items() if ranges[name].tokens
    )


def _profile(
    name: str, layer: nn.Linear | CalibrationModule, ranges: ChannelRanges
) -> ChannelProfile:
    weight = layer.weight.detach().float().abs().amax(0)
    smooth = isinstance(layer, SmoothQuant) and layer.scale is not None
    factors = layer.scale.reshape(-1) if smooth and isinstance(layer.scale, Tensor) else None
    return ChannelProfile(
        name, _array(ranges.magnitude), _array(weight), None if factors is None else _array(factors)
    )


def _effective_weight(module: ScaledLinear) -> Tensor:
    """The weight [N, K] that meets the layer's own inputs: rounded, equalisation undone."""
    ones = torch.ones(1, module.weight.shape[1], device=module.weight.device)
    # In float32 whatever the layer's type: only the rounding of the format is to be seen.
    return module.fake_weight().float() * module.equalised(ones)


def _formats(module: CalibrationModule) -> str:
    return f"{module.act_type or '–'}/{module.wts_type}"


def _array(values: Tensor) -> NDArray[np.float64]:
    return values.detach().cpu().double().numpy()
