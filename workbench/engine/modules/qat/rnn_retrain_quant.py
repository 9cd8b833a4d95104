"""The wrapper that stands at the path of a trained LSTM or GRU in a graph-mode model.

Source: specification chapter 30 section 8.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from workbench.engine.algorithms.weight_training import fake_quantize_blocks
from workbench.engine.graph.rnn import PARTS, to_onnx_order
from workbench.engine.modules.qat.comp_module import Factors
from workbench.engine.modules.qat.operator_config import OperatorConfig
from workbench.engine.modules.qat.recurrent import GRUQAT, LSTMQAT
from workbench.engine.modules.qat.retrain_quant import RetrainQuant

_OPERATORS: dict[str, type[LSTMQAT] | type[GRUQAT]] = {"LSTM": LSTMQAT, "GRU": GRUQAT}
_X, _H, _W, _R = "acts_", "h_", "wts_", "recurrence_wts_"


class RNNRetrainQuant(RetrainQuant):
    """``quant_module`` is the single operator over the parameters of the original layer."""

    quant_module: Any

    def __init__(self, layer: nn.LSTM | nn.GRU, name: str, config: OperatorConfig) -> None:
        operator: Any = _OPERATORS[layer.mode].from_float(layer, config)
        operator.layer_name = name
        super().__init__(operator)
        # In a tuple, so that the parameters have one name in the state dict.
        self._original = (layer,)

    @property
    def original(self) -> nn.Module:
        return self._original[0]

    def is_initialised(self) -> bool:
        return all(self.quant_module.initialised(prefix) for prefix in (_X, _H))

    def batches_seen(self) -> int:
        initialiser = self.quant_module._activations[_X].initialiser
        return 0 if initialiser is None else int(initialiser.seen)

    @torch.no_grad()
    def factors(self) -> Factors:
        """Scales of weights as a record has them: ONNX's order of gates, one for each row."""
        operator = self.quant_module
        scales, weights = [], []
        for prefix, part in ((_W, PARTS[0]), (_R, PARTS[1])):
            weight = operator.get_parameter(part).detach()
            rows = weight.reshape(getattr(operator, prefix + "scales").numel(), -1)
            found = operator.weight_factors(prefix, rows)
            bits = operator._weights[prefix].settings.bits
            weights.append(fake_quantize_blocks(rows, found, bits, 0).reshape(weight.shape))
            each = found.repeat_interleave(weight.shape[0] // found.numel())
            scales.append(to_onnx_order(operator.mode, each))
        scale, offset = operator.final_activation_factors(_X)
        scale_h, offset_h = operator.final_activation_factors(_H)
        joined = torch.cat(weights, dim=1).to(weight.dtype)
        return Factors(
            scale,
            offset,
            scales[0],
            joined,
            scale_h,
            offset_h,
            scales[1],
        )
