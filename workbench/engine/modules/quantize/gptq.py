"""gptq: weights are rounded column by column, later columns making good the errors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.algorithms.gptq import GPTQOptions, solve_gptq
from workbench.engine.algorithms.tokens import InputGram, not_finite
from workbench.engine.algorithms.weight_formats import QuantizedWeight
from workbench.engine.errors import WrongValue
from workbench.engine.modules.quantize.scaled import ScaledLinear


class GPTQuant(ScaledLinear):
    """Keeps the solved weight as codes; the layer's own stays as it is. Chapter 25 section 7.4.

    The Gram matrix of the inputs, K × K floats, is held from the first observed call to the last.
    """

    answers_at_once = True
    solved: Tensor | None

    def __init__(
        self, ori_module: nn.Module, layer_name: str, quant_config: dict[str, Any]
    ) -> None:
        super().__init__(ori_module, layer_name, quant_config)
        if not bool(torch.isfinite(self.weight.detach()).all()):
            raise WrongValue(
                "the weight holds inf or NaN",
                where=f"layer {layer_name}",
                hint="Check the model's checkpoint.",
            )
        self._gram: InputGram | None = None
        self.register_buffer("solved", None)

    def statistics(self) -> dict[str, Any]:
        # Allocated for the first input: thousands of K × K zeros would be held for nothing.
        return {} if self._gram is None else {"gram": self._gram}

    def observe(self, x: Tensor) -> None:
        if self._gram is None:
            self._gram = self._new_gram()
        if not bool(torch.isfinite(x).all()):
            raise not_finite()
        self._gram.update(x)

    def finish(self) -> None:
        assert self._gram is not None
        options = GPTQOptions(**(self.quant_config.get("algorithm", {}).get("gptq") or {}))
        hessian, self._gram = self._gram.hessian, None
        result = solve_gptq(
            self.weight, hessian, self.weight_format, options, overwrite_hessian=True
        )
        quantized = self.weight_format.quantize(result.weight, result.factors)
        # int4 codes travel as int32; four times less is enough to keep them.
        small = self.wts_type == "int4"
        self.solved = quantized.codes.to(torch.int8) if small else quantized.codes
        self.scale_w, self.offset_w = quantized.factors.scale, quantized.factors.offset

    def rounded_weight(self) -> Tensor:
        assert self.solved is not None
        codes = self.solved.to(torch.int32) if self.wts_type == "int4" else self.solved
        return self.weight_format.dequantize(QuantizedWeight(codes, self.weight_factors))

    def fake_weight(self) -> Tensor:
        return self.rounded_weight().to(self.weight.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if f"{prefix}cur_batch" in state_dict:
            begun = any(key.startswith(f"{prefix}gram.") for key in state_dict)
            self._gram = self._new_gram() if begun else None
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _new_gram(self) -> InputGram:
        return InputGram(self.weight.shape[1], self.weight.device)
