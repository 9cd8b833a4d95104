"""Calibration of LSTM and GRU: two weights, and a second observer for the hidden states.

Source: specification chapter 10 sections 6.4, 8 and 11.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.algorithms.activation_scale import ActivationScale
from workbench.engine.algorithms.arq import arq_scale, fake_quantize_weight
from workbench.engine.algorithms.observer import Observer, make_observer
from workbench.engine.files.config import QuantConfig, WeightParams
from workbench.engine.files.record import LayerRecord
from workbench.engine.graph.layers import LayerInfo
from workbench.engine.graph.rnn import (
    RNN_TYPES,
    hidden_states,
    initial_state,
    joined_weight,
    split_weight,
    to_onnx_order,
)
from workbench.engine.numerics.half import to_half_precision


def recurrent_weights(
    layer: nn.Module, info: LayerInfo, settings: WeightParams, *, compat: bool
) -> tuple[LayerRecord, Tensor]:
    """ARQ of both weights: the record's scales in ONNX's gate order, and the fake-quantised
    weights side by side (``graph.rnn.joined_weight``) in torch's."""
    axis = 0 if settings.channel_wise else None
    scales, fakes = [], []
    for weight in split_weight(joined_weight(layer), layer):
        scale = arq_scale(weight, settings.num_bits, axis, compat=compat)
        fakes.append(fake_quantize_weight(weight, scale, settings.num_bits, axis))
        ordered = scale if axis is None else to_onnx_order(info.type, scale)
        scales.append(tuple(float(value) for value in ordered))
    record = LayerRecord(
        scale_w=scales[0],
        offset_w=(0,) * len(scales[0]),
        scale_r=scales[1],
        offset_r=(0,) * len(scales[1]),
        wts_type=f"INT{settings.num_bits}",
    )
    return record, torch.cat(fakes, dim=1)


@dataclass
class _Watched:
    observer: Observer | None
    batches: int = 0
    result: ActivationScale | None = None


class HiddenStates:
    """What the recurrent weights are multiplied with, seen over the first ``batch_num`` batches.

    ``byte_budget`` is for each layer. Layers that are no LSTM or GRU are not watched.
    """

    def __init__(
        self,
        layers: Mapping[str, LayerInfo],
        config: QuantConfig,
        *,
        byte_budget: int,
        sample_limit: int | None,
        compat: bool,
    ) -> None:
        self._config = config
        self._layers: dict[str, _Watched] = {}
        for name in config.enabled():
            if layers[name].type not in RNN_TYPES:
                continue
            observer = make_observer(
                config.layers[name].activation,
                config.asymmetric(name),
                byte_budget=byte_budget,
                sample_limit=sample_limit,
                compat=compat,
            )
            self._layers[name] = _Watched(observer)

    def watch(self, model: nn.Module) -> None:
        """Hook the layers of ``model``, which is run on the calibration batches."""
        for name, watched in self._layers.items():
            hook = self._after(name, watched)
            model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)

    def _after(self, name: str, watched: _Watched) -> Callable[..., None]:
        def after(layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            if watched.observer is None:
                return
            # The watch for concatenations must not see this one.
            with torch._C.DisableTorchFunction():
                states = hidden_states(layer, initial_state(args, kwargs), output[0])
                try:
                    watched.observer.update(states)
                except (TypeError, ValueError, RuntimeError) as error:
                    raise type(error)(f"hidden states of layer {name}: {error}") from error
            watched.batches += 1
            if watched.batches == self._config.batch_num:
                watched.result, watched.observer = watched.observer.result(), None

        return after

    def complete(self, name: str, record: LayerRecord) -> LayerRecord:
        """``record`` with the layer's ``scale_h`` and ``offset_h``, if it has hidden states."""
        watched = self._layers.get(name)
        if watched is None:
            return record
        if watched.observer is not None:
            watched.result, watched.observer = watched.observer.result(), None
        assert watched.result is not None
        scale = watched.result.scale
        if self._config.fakequant_precision_mode == "FORCE_FP16_QUANT":
            scale = to_half_precision(scale)
        return replace(record, scale_h=scale, offset_h=watched.result.offset)
