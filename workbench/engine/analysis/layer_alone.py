"""One layer taken out of its network: what it reads, what it gives, and itself quantised.

Source: specification chapter 70 section 3 (Inspect), chapter 10 sections 8 to 11.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from workbench.engine.algorithms.activation_scale import ActivationScale
from workbench.engine.algorithms.dmq import (
    activation_magnitudes,
    balance_factors,
    channel_axis,
    inverse_balance,
    weight_magnitudes,
)
from workbench.engine.algorithms.minmax import MinMaxObserver
from workbench.engine.algorithms.observer import Observer, make_observer
from workbench.engine.analysis.similarity import ErrorSums
from workbench.engine.errors import WrongState, WrongValue
from workbench.engine.events import CancelToken, Notice, OnEvent, check, emit
from workbench.engine.export.torch_module import FakeQuantLayer
from workbench.engine.export.torch_rnn import FakeQuantRecurrent
from workbench.engine.files.config import (
    ActivationParams,
    LayerConfig,
    QuantConfig,
    WeightParams,
    default_weight,
)
from workbench.engine.files.record import LayerRecord
from workbench.engine.flows.balancing import find_balance
from workbench.engine.flows.folding import fold_plan, folded_copy
from workbench.engine.flows.layer_data import Batch, LayerCall, collect_inputs
from workbench.engine.flows.rounding import quantized_model, tune_rounding
from workbench.engine.flows.weights import WeightResult, calibrate_weights
from workbench.engine.graph.capture import Captured, copy_model
from workbench.engine.graph.outputs import flat_output
from workbench.engine.graph.rnn import hidden_states, initial_state, set_joined_weight
from workbench.engine.numerics.half import to_half_precision

MINMAX = "minmax"
"""The baseline among the activation algorithms, which no configuration can name."""

_KEPT = 2**18
"""Bytes an observer keeps, as in a calibration."""


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer's factors, and its fake-quantised weight where it has one."""

    record: LayerRecord
    weight: Tensor | None


class LayerAlone:
    """Layer ``name`` with its inputs over the calibration batches, quantised in any way.

    ``calls`` are what the layer reads in the float network and ``outputs`` what it gives there;
    ``seen`` what it reads when the weights before it are quantised, which is what a calibration
    looks at to find its scale. (Rounding before it is to the nearest: nothing is tuned for this.)
    As many batches are kept as fit into ``byte_budget``, at least one; fewer are a ``Notice``.

    Errors: ``WrongValue`` for a layer that is not in ``config``, ``WrongState`` for one that a
    batch does not reach.
    """

    def __init__(
        self,
        captured: Captured,
        config: QuantConfig,
        name: str,
        batches: Sequence[Batch],
        *,
        byte_budget: int = 256 * 2**20,
        seed: int = 0,
        on_event: OnEvent | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        if name not in config.layers:
            raise WrongValue(
                f"layer {name!r} cannot be quantised, so there is nothing to compare",
                where="compare",
                hint=f"Choose one of {', '.join(list(config.layers)[:5])} …",
            )
        if not batches:
            raise WrongState("there is no calibration batch", where="compare")
        self.captured = captured
        self.config = config.with_enabled({name: True})
        self.name = name
        self.info = captured.layers[name]
        self.seed = seed
        self._batches = batches
        self._cancel = cancel
        self.folded = folded_copy(captured, fold_plan(captured, config))
        self.layer = self.folded.get_submodule(name)
        first_args, first_kwargs = batches[0]
        self.balance = dict(
            find_balance(
                captured, self.config, lambda m: m(*first_args, **first_kwargs), cancel=cancel
            )
        )
        self._weights = calibrate_weights(
            self.folded, captured.layers, self.config, balance=self.balance, cancel=cancel
        )
        self.calls: list[LayerCall] = []
        self.seen: list[Tensor] = []
        self.outputs: list[Any] = []
        self._collect(byte_budget, on_event)

    def _collect(self, byte_budget: int, on_event: OnEvent | None) -> None:
        before = {n: f for n, f in self.balance.items() if n != self.name}
        quantized = quantized_model(self.folded, self.captured, self._weights.weights, before)
        used = 0
        for batch in self._batches:
            check(self._cancel)
            (call,) = collect_inputs(self.folded, self.name, [batch], cancel=self._cancel)
            (other,) = collect_inputs(quantized, self.name, [batch], cancel=self._cancel)
            with torch.no_grad():
                output = self.layer(*call.args, **call.kwargs)
            # The first layer reads the same in both networks.
            seen = call.value if torch.equal(call.value, other.value) else other.value
            used += sum(_bytes(x) for x in (call.args, call.kwargs, output))
            used += 0 if seen is call.value else _bytes(seen)
            if self.calls and used > byte_budget:
                emit(
                    on_event,
                    Notice(
                        f"{self.name}: compared on {len(self.calls)} of {len(self._batches)} "
                        "batches, which is what fits into memory"
                    ),
                )
                break
            self.calls.append(call)
            self.seen.append(seen)
            self.outputs.append(output)

    @property
    def entry(self) -> LayerConfig:
        return self.config.layers[self.name]

    @property
    def weight_params(self) -> WeightParams:
        return self.entry.weight or default_weight(self.info)

    def factors(self, strength: float | None) -> tuple[float, ...]:
        """DMQ factors of this strength from the first batch; () without one."""
        if strength is None:
            return ()
        if strength == self.entry.dmq_balancer_param and self.name in self.balance:
            return self.balance[self.name]
        activation = activation_magnitudes(self.calls[0].value, channel_axis(self.info.type))
        weight = weight_magnitudes(
            self.layer.get_parameter("weight"),
            transposed=self.info.type.startswith("ConvTranspose"),
            groups=self.info.groups,
        )
        return tuple(balance_factors(activation.cpu(), weight.cpu(), strength).tolist())

    def _observer(self, params: ActivationParams) -> Observer:
        asymmetric = self.config.asymmetric(self.name)
        if params.act_algo == MINMAX:
            return MinMaxObserver(params.num_bits, asymmetric)
        return make_observer(params, asymmetric, byte_budget=_KEPT)

    def _scale(self, observer: Observer) -> ActivationScale:
        found = observer.result()
        if self.config.fakequant_precision_mode == "FORCE_FP16_QUANT":
            found = replace(found, scale=to_half_precision(found.scale))
        return found

    def activation(self, params: ActivationParams, factors: tuple[float, ...]) -> ActivationScale:
        """The scale that an algorithm finds; ``params.act_algo`` may be ``MINMAX``."""
        observer = self._observer(params)
        inverse = None
        if factors:
            weight = self.layer.get_parameter("weight")
            inverse = inverse_balance(factors, self.info.type, weight.dim())
            inverse = inverse.to(weight.device, weight.dtype)
        for x in self.seen[: self.config.batch_num]:
            check(self._cancel)
            observer.update(x if inverse is None else x * inverse)
        return self._scale(observer)

    def _hidden(self, params: ActivationParams, weight: Tensor) -> ActivationScale:
        layer = copy_model(self.layer)
        set_joined_weight(layer, weight)
        observer = self._observer(params)
        for call, x in zip(self.calls[: self.config.batch_num], self.seen, strict=False):
            check(self._cancel)
            args, kwargs = call.args[1:], {k: v for k, v in call.kwargs.items() if k != "input"}
            with torch.no_grad():
                output = layer(x, *args, **kwargs)
            observer.update(hidden_states(layer, initial_state(call.args, call.kwargs), output[0]))
        return self._scale(observer)

    def weight(self, params: WeightParams, factors: tuple[float, ...]) -> QuantizedLayer:
        """The weight's factors and values, rounded to the nearest."""
        only = replace(
            self.config, layers={self.name: replace(self.entry, weight=self._given(params))}
        )
        found = calibrate_weights(
            self.folded,
            self.captured.layers,
            only,
            balance={self.name: factors} if factors else None,
        )
        return QuantizedLayer(found.records[self.name], found.weights.get(self.name))

    def _given(self, params: WeightParams) -> WeightParams | None:
        return params if self.info.has_weight else None

    def tuned(
        self,
        params: WeightParams,
        factors: tuple[float, ...],
        *,
        on_event: OnEvent | None = None,
    ) -> QuantizedLayer:
        """The same with learned rounding (``params`` are those of ``ada_quantize``)."""
        nearest = self.weight(params, factors)
        assert nearest.weight is not None
        layers = {
            n: replace(e, weight=replace(e.weight, wts_algo="arq_quantize") if e.weight else None)
            for n, e in self.config.layers.items()
        }
        layers[self.name] = replace(self.entry, weight=params)
        found = tune_rounding(
            self.captured,
            self.folded,
            replace(self.config, layers=layers),
            WeightResult(
                {**self._weights.records, self.name: nearest.record},
                {**self._weights.weights, self.name: nearest.weight},
            ),
            self._batches[: len(self.calls)],
            balance={**self.balance, **({self.name: factors} if factors else {})},
            seed=self.seed,
            on_event=on_event,
            cancel=self._cancel,
        )
        return QuantizedLayer(nearest.record, found.get(self.name, nearest.weight))

    def with_activation(
        self, weight: QuantizedLayer, scale: ActivationScale, params: ActivationParams
    ) -> QuantizedLayer:
        """A quantised weight together with an activation's scale."""
        record = replace(
            weight.record,
            scale_d=scale.scale,
            offset_d=scale.offset,
            act_type=f"INT{params.num_bits}",
        )
        if isinstance(self.layer, nn.RNNBase):
            assert weight.weight is not None
            hidden = self._hidden(params, weight.weight)
            record = replace(record, scale_h=hidden.scale, offset_h=hidden.offset)
        return QuantizedLayer(record, weight.weight)

    def in_use(self) -> QuantizedLayer:
        """As configured, rounded to the nearest."""
        factors = self.balance.get(self.name, ())
        activation = self.entry.activation
        weight = self.weight(self.weight_params, factors)
        return self.with_activation(weight, self.activation(activation, factors), activation)

    def module(self, quantized: QuantizedLayer) -> nn.Module:
        """The layer on integer codes."""
        if isinstance(self.layer, nn.RNNBase):
            return FakeQuantRecurrent(
                self.layer, self.name, quantized.record, weight=quantized.weight
            )
        return FakeQuantLayer(self.layer, self.name, quantized.record, weight=quantized.weight)

    def errors(self, quantized: QuantizedLayer) -> ErrorSums:
        """How far the quantised layer's outputs are from the float layer's, on the same inputs."""
        sums = ErrorSums()
        for reference, given in self.pairs(quantized):
            sums.add(reference, given)
        return sums

    def pairs(self, quantized: QuantizedLayer) -> Iterator[tuple[Tensor, Tensor]]:
        """Batch by batch the outputs of the float and of the quantised layer, as flat vectors."""
        module = self.module(quantized)
        for call, output in zip(self.calls, self.outputs, strict=True):
            check(self._cancel)
            with torch.no_grad():
                given = module(*call.args, **call.kwargs)
            yield flat_output(output), flat_output(given)


def _bytes(value: Any) -> int:
    leaves = pytree.tree_leaves(value)
    return sum(x.numel() * x.element_size() for x in leaves if isinstance(x, Tensor))


def settings_of(entry: LayerConfig) -> Mapping[str, Any]:
    """A layer's settings as the columns of a table have them; ``dmq`` 0: none."""
    settings: dict[str, Any] = {
        "act_algo": entry.activation.act_algo,
        "act_bits": entry.activation.num_bits,
        "dmq": entry.dmq_balancer_param or 0.0,
    }
    if entry.weight is not None:
        settings |= {
            "wts_algo": entry.weight.wts_algo,
            "wts_bits": entry.weight.num_bits,
            "channel_wise": entry.weight.channel_wise,
        }
    return settings
