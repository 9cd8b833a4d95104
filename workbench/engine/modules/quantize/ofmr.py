"""ofmr: the power of two with the smallest error of the layer's output."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.algorithms.scale_rule import Factors, fake_quantize
from workbench.engine.algorithms.tokens import not_finite
from workbench.engine.errors import WrongState
from workbench.engine.modules.quantize.base import CalibrationModule
from workbench.engine.modules.quantize.convolution import Convolution
from workbench.engine.numerics.formats import ELEMENT_FORMATS

EXPONENTS = range(-5, 6)


class OutputError:
    """Squared error of the output for each candidate ``2^(centre + k)``, summed over calls."""

    def __init__(self, outputs: int | None, device: torch.device) -> None:
        shape = (len(EXPONENTS),) if outputs is None else (len(EXPONENTS), outputs)
        self.loss = torch.zeros(shape, device=device)
        self.centre = 0

    def centre_on(self, values: Tensor, target: float) -> None:
        """Let the middle candidate bring the largest of ``values`` near ``target``."""
        largest = float(values.detach().abs().amax())
        usable = 0 < largest < math.inf
        self.centre = round(math.log2(largest / target)) if usable else 0

    def candidates(self) -> Iterator[tuple[int, Factors]]:
        """Place in ``loss`` and scale [1, 1] of each candidate."""
        for place, exponent in enumerate(EXPONENTS):
            scale = 2.0 ** (self.centre + exponent)
            yield place, Factors(torch.full((1, 1), scale, device=self.loss.device))

    def best(self) -> Tensor:
        """Scales, one or one per output; of equals the smallest."""
        loss = self.loss.nan_to_num(nan=torch.inf, posinf=torch.inf)
        lowest, index = loss.min(0)
        if not bool(torch.isfinite(lowest).all()):
            raise WrongState(
                "no scale gives a finite error of the output",
                hint="Check the calibration data, or leave this layer in float.",
            )
        return torch.exp2(index.reshape(-1).float() + (self.centre + EXPONENTS[0]))


class OfmrQuant(CalibrationModule):
    """Linear and Conv2d, hifloat8 and float8; weights and inputs are searched apart.

    With the option ``centred`` the candidates lie around the range of what is scaled, else around
    1. ``scale_w`` is [1], or per channel [N, 1] (Linear) and [N] (Conv2d). Chapter 25 section 7.5.
    """

    def __init__(
        self, ori_module: nn.Module, layer_name: str, quant_config: dict[str, Any]
    ) -> None:
        super().__init__(ori_module, layer_name, quant_config)
        self.convolution = Convolution.of(ori_module) if isinstance(ori_module, nn.Conv2d) else None
        per_channel = self.weight_format.strategy == "channel"
        outputs = self.weight.shape[0] if per_channel else None
        self._weight_error = OutputError(outputs, self.weight.device)
        self._input_error = OutputError(None, self.weight.device)
        options = quant_config["algorithm"].get("ofmr") or {}
        self._centred = bool(options.get("centred"))
        if self._centred:
            target = ELEMENT_FORMATS[self.weight_format.type].scale_target
            self._weight_error.centre_on(self.weight, target)

    def statistics(self) -> dict[str, Any]:
        return {"weight_error": self._weight_error, "input_error": self._input_error}

    @property
    def weight_factors(self) -> Factors:
        """Scales that broadcast over the weight."""
        assert self.scale_w is not None
        if self.scale_w.numel() == 1:
            return Factors(self.scale_w.reshape(1, 1))
        return Factors(self.scale_w.reshape(-1, 1))

    def rounded_weight(self) -> Tensor:
        return self.weight.detach()

    def check_rank(self, x: Tensor) -> None:
        if self.convolution is None:
            super().check_rank(x)

    def float_forward(self, x: Tensor) -> Tensor:
        return self._apply_weight(x, self.weight, self.bias)

    def observe(self, x: Tensor) -> None:
        output = self.float_forward(x).double()
        if not bool(torch.isfinite(x).all()):
            raise not_finite()
        if self.cur_batch == 0 and self.inputs and self._centred:
            self._input_error.centre_on(x, self.inputs.element.scale_target)
        # All but the outputs; a candidate's error is measured without the other's.
        axis = -1 if self.convolution is None else -3
        others = [i for i in range(output.dim()) if i != output.dim() + axis]
        for place, scale in self._weight_error.candidates():
            weight = self.weight_format.fake_quantize(self.weight, scale)
            error = (self._apply_weight(x, weight, self.bias) - output).square()
            per_channel = self._weight_error.loss.dim() == 2
            total = error.sum(others) if per_channel else error.sum()
            self._weight_error.loss[place] += (total / output.numel()).float()
        for place, scale in self._input_error.candidates() if self.inputs else ():
            moved = self._fake_input(x, scale.scale.reshape(1))
            error = (self._apply_weight(moved, self.weight, self.bias) - output).square()
            self._input_error.loss[place] += (error.sum() / output.numel()).float()

    def finish(self) -> None:
        scale = self._weight_error.best()
        linear = self.convolution is None and scale.numel() > 1
        self.scale_w = scale.unsqueeze(1) if linear else scale
        if self.inputs:
            self.scale_d = self._input_error.best()

    def fake_forward(self, x: Tensor) -> Tensor:
        moved = x if self.scale_d is None else self._fake_input(x, self.scale_d)
        weight = self.weight_format.fake_quantize(self.weight, self.weight_factors)
        return self._apply_weight(moved, weight, self.bias)

    def _fake_input(self, x: Tensor, scale: Tensor) -> Tensor:
        assert self.inputs is not None
        return fake_quantize(x, Factors(scale), self.inputs.element)

    def _apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.convolution is None:
            return nn.functional.linear(x, weight, bias)
        return self.convolution(x, weight, bias)
