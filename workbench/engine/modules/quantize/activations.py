"""What the input of a layer is quantised to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.engine.algorithms.scale_rule import Factors, fake_quantize, scale_and_offset
from workbench.engine.algorithms.tokens import not_finite
from workbench.engine.modules.quantize.operators import quantize_tokens
from workbench.engine.numerics.element import ElementFormat
from workbench.engine.numerics.formats import ELEMENT_FORMATS


@dataclass(frozen=True)
class ActivationFormat:
    """``strategy`` "tensor" has one calibrated scale; "token" finds one per token at run time."""

    type: str
    symmetric: bool
    strategy: str
    dynamic: bool

    @staticmethod
    def of(inputs: Mapping[str, Any]) -> ActivationFormat | None:
        """From ``inputs_cfg``; None when activations stay as they are."""
        if inputs.get("enable_quant") is False:
            return None
        return ActivationFormat(
            inputs["quant_type"],
            inputs["symmetric"],
            inputs["strategy"],
            bool(inputs.get("dynamic")),
        )

    @property
    def per_token(self) -> bool:
        return self.strategy == "token"

    @property
    def element(self) -> ElementFormat:
        return ELEMENT_FORMATS[self.type]

    def factors(self, high: Tensor, low: Tensor) -> Factors:
        """Factors ``[1]`` of a range."""
        return scale_and_offset(
            high.reshape(1), low.reshape(1), self.element, symmetric=self.symmetric
        )

    def fake_quantize(self, x: Tensor, factors: Factors | None) -> Tensor:
        """``x`` on the grid of ``factors``, or per token on its own."""
        if self.per_token:
            codes, scale = quantize_tokens(x, self.element)
            return (self.element.decode(codes) * scale).to(x.dtype)
        assert factors is not None
        return fake_quantize(x, factors, self.element)


class RunningRange:
    """Smallest and largest number of all inputs."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.low = torch.full((1,), torch.inf, device=device)
        self.high = torch.full((1,), -torch.inf, device=device)

    def update(self, x: Tensor) -> None:
        """Take in one input; ``RuntimeError`` when it holds inf or NaN."""
        low, high = (value.float() for value in x.detach().aminmax())
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise not_finite()
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
