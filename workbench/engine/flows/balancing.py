"""Finding DMQ's balance factors: watch the inputs of the layers concerned, write the record.

Source: specification chapter 10 sections 3.2 and 10, D16, D18.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.algorithms.dmq import (
    HIGHEST,
    LOWEST,
    activation_magnitudes,
    balance_factors,
    channel_axis,
    weight_magnitudes,
)
from workbench.engine.errors import WrongState, WrongValue
from workbench.engine.events import CancelToken, OnEvent, Progress, check, emit
from workbench.engine.files.config import QuantConfig
from workbench.engine.files.layer_rules import rules_for
from workbench.engine.files.record import LayerRecord, Record
from workbench.engine.flows.folding import fold_plan, folded_copy
from workbench.engine.graph.capture import Captured
from workbench.engine.graph.layers import LayerInfo

log = logging.getLogger("workbench.engine.flows.balancing")

Factors = Mapping[str, tuple[float, ...]]
"""Layer name to one factor per input channel."""


class Balancing:
    """One search for balance factors: ``model`` is run on batches, then ``factors`` is known.

    ``model`` is a float copy with batch norms folded in; it computes what the user's model does.
    The factors come from the first ``batches`` batches that reach each layer; later ones change
    nothing. ``on_finished`` gets the record as soon as every layer has seen its batches.

    Errors: ``WrongState`` when no enabled layer has a ``dmq_balancer_param``.
    """

    def __init__(
        self,
        captured: Captured,
        config: QuantConfig,
        *,
        batches: int = 1,
        on_finished: Callable[[Record], None] | None = None,
        on_event: OnEvent | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        names = set(balanced_layers(config, captured.layers))
        if not names:
            raise WrongState(
                "no enabled layer has a dmq_balancer_param",
                where="config",
                hint="Set it on a layer (0.5 is the usual value), or skip quantize_preprocess.",
            )
        self.captured = captured
        self.config = config
        self._wanted = batches
        self._on_finished = on_finished
        self._on_event = on_event
        self._cancel = cancel
        self.model = folded_copy(captured, fold_plan(captured, config))
        self._layers = {n: m for n, m in self.model.named_modules() if n in names}
        self._seen = dict.fromkeys(self._layers, 0)
        self._largest: dict[str, Tensor] = {}
        self._factors: dict[str, tuple[float, ...]] | None = None
        for name, layer in self._layers.items():
            layer.register_forward_pre_hook(self._before(name), with_kwargs=True)
        forward = self.model.forward

        def balancing_forward(*args: Any, **kwargs: Any) -> Any:
            check(self._cancel)
            with torch.no_grad():
                output = forward(*args, **kwargs)
            self._batch_finished()
            return output

        object.__setattr__(self.model, "forward", balancing_forward)
        object.__setattr__(self.model, "balancing", self)
        object.__setattr__(self.model, "workbench_wrapper", True)  # no model to start a flow from

    def _before(self, name: str) -> Callable[..., None]:
        axis = channel_axis(self.captured.layers[name].type)

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._seen[name] >= self._wanted:
                return
            try:
                largest = activation_magnitudes(layer_input(name, args, kwargs), axis)
            except (TypeError, RuntimeError) as error:
                raise type(error)(f"layer {name}, batch {self._seen[name] + 1}: {error}") from error
            known = self._largest.get(name)
            self._largest[name] = largest if known is None else torch.maximum(known, largest)
            self._seen[name] += 1

        return before

    def _batch_finished(self) -> None:
        if self._factors is not None:
            return
        done = min(self._seen.values())
        emit(self._on_event, Progress("balance", done, self._wanted))
        if done >= self._wanted:
            self._close()

    def missing(self) -> dict[str, int]:
        """Layers that have seen fewer batches than are wanted, with the number seen."""
        return {n: seen for n, seen in self._seen.items() if seen < self._wanted}

    @property
    def is_done(self) -> bool:
        return self._factors is not None

    def _close(self) -> None:
        factors: dict[str, tuple[float, ...]] = {}
        for name, layer in self._layers.items():
            info = self.captured.layers[name]
            strength = self.config.layers[name].dmq_balancer_param
            assert strength is not None
            weight = weight_magnitudes(
                layer.get_parameter("weight"),
                transposed=info.type.startswith("ConvTranspose"),
                groups=info.groups,
            )
            try:
                found = balance_factors(self._largest[name].cpu(), weight.cpu(), strength)
            except (RuntimeError, ValueError) as error:
                raise type(error)(f"layer {name}: {error}") from error
            factors[name] = tuple(found.tolist())
        self._factors = factors
        if self._on_finished is not None:
            self._on_finished(self.record())

    def finalize(self, *, allow_fewer: bool = False) -> Factors:
        """The factors.

        Errors: ``WrongState`` naming the layers that have not seen all batches; with
        ``allow_fewer`` only those that have seen none.
        """
        if self._factors is None:
            missing = self.missing()
            if not (allow_fewer and all(missing.values())):
                listed = ", ".join(f"{n} ({k} of {self._wanted})" for n, k in missing.items())
                raise WrongState(
                    f"the balance factors are incomplete; batches seen: {listed}",
                    where="balancing",
                    hint="Run the model on a batch that reaches these layers.",
                )
            self._close()
        assert self._factors is not None
        return self._factors

    def record(self) -> Record:
        """The record after preprocessing: balance factors only (section 12.3)."""
        return Record({n: LayerRecord(tensor_balance_factor=f) for n, f in self.finalize().items()})


def balanced_layers(config: QuantConfig, layers: Mapping[str, LayerInfo]) -> tuple[str, ...]:
    """Enabled layers with a ``dmq_balancer_param`` that can be balanced; others are logged."""
    wanted = [n for n in config.enabled() if config.layers[n].dmq_balancer_param is not None]
    for name in wanted:
        if not rules_for(layers[name]).dmq:
            log.warning("%s: a %s cannot be balanced; it is left alone", name, layers[name].type)
    return tuple(name for name in wanted if rules_for(layers[name]).dmq)


def find_balance(
    captured: Captured,
    config: QuantConfig,
    run: Callable[[nn.Module], object],
    *,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> Factors:
    """The factors of ``config`` from whatever ``run`` passes through the model; {} without DMQ.

    Like ``quantize_preprocess`` followed by one batch, without files.
    """
    if not balanced_layers(config, captured.layers):
        return {}
    balancing = Balancing(captured, config, on_event=on_event, cancel=cancel)
    run(balancing.model)
    return balancing.finalize()


def factors_of(
    record: Record, config: QuantConfig, layers: Mapping[str, LayerInfo], *, source: str
) -> Factors:
    """The factors that a record holds for the layers of ``config`` that want some.

    One ``ValueError`` names every layer without factors, with a wrong number of them, or with one
    out of range.
    """
    found: dict[str, tuple[float, ...]] = {}
    problems = []
    wanted = balanced_layers(config, layers)
    for name in wanted:
        entry = record.layers.get(name)
        factors = entry.tensor_balance_factor if entry else ()
        channels = layers[name].in_channels
        if not factors:
            problems.append(f"layer {name} has a dmq_balancer_param but no tensor_balance_factor")
        elif len(factors) != channels:
            problems.append(f"layer {name} has {len(factors)} factors for {channels} channels")
        elif not all(LOWEST <= factor <= HIGHEST for factor in factors):
            problems.append(f"layer {name} has a factor outside {LOWEST:.3g} to {HIGHEST:.3g}")
        found[name] = factors
    if problems:
        raise WrongValue(
            "; ".join(problems),
            where=source,
            hint="Run the model that quantize_preprocess returns on one batch first.",
        )
    unused = [n for n, e in record.layers.items() if e.tensor_balance_factor and n not in found]
    if unused:
        log.warning(
            "%s: the balance factors of %s are not used: no dmq_balancer_param", source, unused
        )
    return found


def needed_factors(
    captured: Captured, config: QuantConfig, given: Factors | None
) -> dict[str, tuple[float, ...]]:
    """Of ``given`` those that ``config`` wants; ``ValueError`` naming layers without any."""
    wanted = balanced_layers(config, captured.layers)
    missing = [name for name in wanted if not (given or {}).get(name)]
    if missing:
        raise WrongValue(
            f"no balance factors for {', '.join(missing)}",
            where="calibration",
            hint="Run the model that quantize_preprocess returns on one batch first.",
        )
    return {name: given[name] for name in wanted} if given else {}


def layer_input(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The tensor a layer was called with; ``WrongState`` when there is none."""
    value = args[0] if args else kwargs.get("input")
    if not isinstance(value, Tensor):
        raise WrongState(f"layer {name} was called without a tensor", where="calibration")
    return value.detach()


def replace_input(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments of a layer with ``value`` in place of its input."""
    if args:
        return (value, *args[1:]), dict(kwargs)
    return args, {**kwargs, "input": value}
