"""AdaRound over a model: every ADA layer in turn, on what it reads in the quantised model.

Source: specification chapter 10 section 8.2, D6 to D8.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.algorithms.adaround import (
    LEARNING_RATE,
    REFERENCE_LEARNING_RATE,
    Samples,
    SoftRounding,
    tune,
)
from workbench.engine.algorithms.arq import from_channel_first
from workbench.engine.algorithms.dmq import inverse_balance
from workbench.engine.errors import WrongState
from workbench.engine.events import CancelToken, OnEvent, Progress, RoundingTuned, check, emit
from workbench.engine.files.config import QuantConfig, WeightParams
from workbench.engine.flows.balancing import layer_input, replace_input
from workbench.engine.flows.layer_data import Batch, FloatOutputs, LayerCall, collect_inputs
from workbench.engine.flows.weights import WeightResult, balanced_weight
from workbench.engine.graph.activations import Activation, following_activation
from workbench.engine.graph.capture import Captured, copy_model
from workbench.engine.graph.layers import LayerInfo
from workbench.engine.graph.rnn import set_joined_weight

_REPORTS = 100
"""Loss events a layer."""


def tune_rounding(
    captured: Captured,
    folded: nn.Module,
    config: QuantConfig,
    weights: WeightResult,
    batches: Iterable[Batch],
    *,
    balance: Mapping[str, tuple[float, ...]] | None = None,
    seed: int = 0,
    compat: bool = False,
    memory_budget_mb: int = 256,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> dict[str, Tensor]:
    """Fake-quantised weights of the ADA layers with learned rounding, in their dtype and layout.

    ``folded`` is the float model with batch norms folded in, ``weights`` what ``calibrate_weights``
    made of it: neither is changed. In execution order each layer learns to give, from what it reads
    when everything before it is quantised, what it gives in the float model, the activation that
    follows it included. ``batches``: arguments of the model's forward. Outputs of the float model
    are kept within ``memory_budget_mb``, of one layer at least. Layers with ``num_iteration`` 0
    stay rounded to nearest and are not in the result. ``compat``: the reference's learning rate.

    Errors: ``WrongState`` for a loss that is not finite, naming the layer, and without batches.
    """
    learned = [name for name in learned_layers(config) if name in weights.weights]
    names = sorted(learned, key=lambda name: captured.layers[name].order)
    if not names:
        return {}
    data = list(batches)
    if not data:
        raise WrongState(
            "there is no batch to tune the rounding on",
            where="calibration_data",
            hint="Give at least one batch, or leave calibration_data out.",
        )
    quantized = quantized_model(folded, captured, weights.weights, balance or {})
    normed = [path for path, child in folded.named_modules() if isinstance(child, nn.Identity)]
    activations = {name: following_activation(captured, name, normed) for name in names}

    def activated(name: str, output: Tensor) -> Tensor:
        # A copy in any case: the model may write to a layer's output in place.
        output = output.detach().to(torch.float32, copy=True)
        activation = activations[name]
        return output if activation is None else activation(output)

    targets = FloatOutputs(
        copy_model(folded),
        names,
        data,
        activated,
        byte_budget=memory_budget_mb * 2**20,
        cancel=cancel,
    )
    report = _Report(names, config, on_event, cancel)
    tuned: dict[str, Tensor] = {}
    for name in names:
        check(cancel)
        outputs = targets.take(name)
        calls = collect_inputs(quantized, name, data, cancel=cancel)
        layer = folded.get_submodule(name)
        samples = _samples(_own_layer(layer), activations[name], calls, outputs)
        del calls, outputs
        settings = config.layers[name].weight
        assert settings is not None
        info = captured.layers[name]
        stored = layer.get_parameter("weight").detach()
        factors = (balance or {}).get(name, ())
        weight = balanced_weight(stored, info, factors) if factors else stored
        scale = torch.tensor(weights.records[name].scale_w, device=weight.device)
        rounding = SoftRounding(
            weight,
            _broadcast(scale, weight, info),
            settings.num_bits,
            learning_rate=REFERENCE_LEARNING_RATE if compat else LEARNING_RATE,
        )
        # Of its own for each layer, so that one more or less does not change the others.
        generator = torch.Generator().manual_seed(seed)
        tune(
            rounding,
            samples,
            settings,
            generator,
            where=f"layer {name}",
            on_step=report.of(name),
        )
        tuned[name] = rounding.hard_weight().to(stored.dtype).contiguous()
        _set_weight(quantized, name, tuned[name])
    return tuned


def learned_layers(config: QuantConfig) -> tuple[str, ...]:
    """Enabled layers whose rounding is learned (``ada_quantize`` with at least one iteration)."""
    return tuple(n for n in config.enabled() if _iterations(config.layers[n].weight))


def _iterations(settings: WeightParams | None) -> int:
    ada = settings is not None and settings.wts_algo == "ada_quantize"
    return settings.num_iteration if settings is not None and ada else 0


def quantized_model(
    folded: nn.Module,
    captured: Captured,
    weights: Mapping[str, Tensor],
    balance: Mapping[str, tuple[float, ...]],
) -> nn.Module:
    """A copy of ``folded`` with these weights; layers in ``balance`` divide their input by it."""
    model = copy_model(folded)
    for name, weight in weights.items():
        _set_weight(model, name, weight)

    def divide(name: str) -> Callable[..., Any]:
        kind, factors = captured.layers[name].type, balance[name]

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x = layer_input(name, args, kwargs)
            inverse = inverse_balance(factors, kind, x.dim()).to(x.device, x.dtype)
            return replace_input(args, kwargs, x * inverse)

        return before

    for name in balance:
        if name in weights:
            layer = model.get_submodule(name)
            layer.register_forward_pre_hook(divide(name), with_kwargs=True)
    return model


def _set_weight(model: nn.Module, name: str, weight: Tensor) -> None:
    layer = model.get_submodule(name)
    if isinstance(layer, nn.RNNBase):
        set_joined_weight(layer, weight)
    else:
        layer.register_parameter("weight", nn.Parameter(weight, requires_grad=False))


def _own_layer(layer: nn.Module) -> nn.Module:
    """A float32 copy of one layer that computes and nothing else: no hooks, no gradients."""
    own = copy.deepcopy(layer).float().requires_grad_(False)
    own._forward_hooks.clear()
    own._forward_pre_hooks.clear()
    return own.eval()


def _samples(
    layer: nn.Module,
    activation: Activation | None,
    calls: list[LayerCall],
    outputs: list[Tensor],
) -> list[Samples]:
    """Calls and their targets, joined along axis 0 where shapes and further arguments agree."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, (call, output) in enumerate(zip(calls, outputs, strict=True)):
        key = (call.value.shape[1:], output.shape[1:], repr(_others(call)))
        groups.setdefault(key, []).append(index)
    result = []
    for members in groups.values():
        inputs = [calls[i].value.to(torch.float32) for i in members]
        targets = [outputs[i] for i in members]
        result.append(
            Samples(
                inputs[0] if len(members) == 1 else torch.cat(inputs),
                targets[0] if len(members) == 1 else torch.cat(targets),
                _forward(layer, activation, calls[members[0]]),
            )
        )
    return result


def _others(call: LayerCall) -> tuple[object, ...]:
    named = sorted((k, v) for k, v in call.kwargs.items() if k != "input")
    return (*call.args[1:], *named)


def _forward(
    layer: nn.Module, activation: Activation | None, call: LayerCall
) -> Callable[[Tensor, Tensor], Tensor]:
    args, kwargs = call.args[1:], {k: v for k, v in call.kwargs.items() if k != "input"}

    def forward(x: Tensor, weight: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(layer, {"weight": weight}, (x, *args), kwargs)
        return output if activation is None else activation(output)

    return forward


def _broadcast(scale: Tensor, weight: Tensor, info: LayerInfo) -> Tensor:
    """Scales of the output channels, shaped to divide the weight in its own layout."""
    tail = (1,) * (weight.dim() - 2)
    if scale.numel() == 1:
        return scale.reshape((1,) * weight.dim())
    if not info.type.startswith("ConvTranspose"):
        return scale.reshape(-1, 1, *tail)
    rows = scale.reshape(-1, 1, *tail).expand(-1, weight.shape[0] // info.groups, *tail)
    return from_channel_first(rows, True, info.groups)


@dataclass
class _Report:
    """Events of a tuning, and the token asked at every step."""

    names: list[str]
    config: QuantConfig
    on_event: OnEvent | None
    cancel: CancelToken | None

    def of(self, name: str) -> Callable[[int, float], None]:
        before = 0
        for earlier in self.names[: self.names.index(name)]:
            before += _iterations(self.config.layers[earlier].weight)
        total = sum(_iterations(self.config.layers[n].weight) for n in self.names)
        own = _iterations(self.config.layers[name].weight)
        every = max(1, own // _REPORTS)

        def on_step(step: int, loss: float) -> None:
            check(self.cancel)
            if step % every == 0 or step == own:
                emit(self.on_event, RoundingTuned(name, step, own, loss))
                emit(self.on_event, Progress("rounding", before + step, total))

        return on_step
