"""What single layers read and give while a model runs, collected with few and partial forwards.

Source: specification chapter 10 section 8.2 and D7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from workbench.engine.errors import WrongState
from workbench.engine.events import CancelToken, check
from workbench.engine.flows.balancing import layer_input

Batch = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and keyword arguments of one forward of the model."""


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer: its input tensor, and every argument it was given."""

    value: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Reached(BaseException):
    """Ends a forward early; no ``Exception``, so that a model's own handlers let it through."""


def collect_inputs(
    model: nn.Module, name: str, batches: Sequence[Batch], *, cancel: CancelToken | None = None
) -> list[LayerCall]:
    """The calls of layer ``name``, one a batch; each forward stops there.

    Raises ``WrongState`` for a batch that does not reach the layer.
    """
    calls: list[LayerCall] = []

    def reached(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(LayerCall(layer_input(name, args, kwargs), args, kwargs))
        raise _Reached

    handle = model.get_submodule(name).register_forward_pre_hook(reached, with_kwargs=True)
    try:
        for number, batch in enumerate(batches):
            check(cancel)
            _run(model, batch)
            if len(calls) != number + 1:
                raise _not_reached(name, number)
    finally:
        handle.remove()
    return calls


class FloatOutputs:
    """The float outputs of layers, asked for in execution order.

    One forward a batch serves as many layers as fit into ``byte_budget``, at least one; when those
    are used up the next forward collects the following ones. ``transform`` is applied before
    keeping (the activation folded into a layer).
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        batches: Sequence[Batch],
        transform: Callable[[str, Tensor], Tensor],
        *,
        byte_budget: int,
        cancel: CancelToken | None = None,
    ) -> None:
        self._model = model
        self._names = list(names)
        self._batches = batches
        self._transform = transform
        self._budget = byte_budget
        self._cancel = cancel
        self._kept: dict[str, list[Tensor]] = {}

    def take(self, name: str) -> list[Tensor]:
        """One output a batch; they are given once. ``WrongState`` if a batch misses the layer."""
        if name not in self._kept:
            self._collect(self._names[self._names.index(name) :])
        outputs = self._kept.pop(name, [])
        if len(outputs) != len(self._batches):
            raise _not_reached(name, len(outputs))
        return outputs

    def _collect(self, names: list[str]) -> None:
        self._kept = {}
        last = ""
        used = 0

        def admit(name: str, size: int) -> bool:
            nonlocal used
            used += size * len(self._batches)
            return used <= self._budget or not self._kept

        def see(name: str, output: Tensor) -> None:
            nonlocal last
            first = not last
            if first or name in self._kept:
                value = self._transform(name, output)
                if first and not admit(name, value.numel() * value.element_size()):
                    raise _Reached
                self._kept.setdefault(name, []).append(value)
            if name == last:
                raise _Reached

        def hook(name: str) -> Callable[..., None]:
            return lambda module, args, output: see(name, output)

        # Before hooks of the user: what counts is what the layer itself computes.
        handles = [
            self._model.get_submodule(n).register_forward_hook(hook(n), prepend=True) for n in names
        ]
        try:
            for batch in self._batches:
                check(self._cancel)
                _run(self._model, batch)
                last = last or next(reversed(self._kept), "")
        finally:
            for handle in handles:
                handle.remove()


def _run(model: nn.Module, batch: Batch) -> None:
    # Models that write to their inputs must find them whole in the next pass.
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf,
        (batch[0], dict(batch[1])),
    )
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except _Reached:
        pass


def _not_reached(name: str, batch: int) -> WrongState:
    return WrongState(
        f"calibration batch {batch + 1} does not reach it",
        where=f"layer {name}",
        hint="Use arq_quantize for this layer, or give batches that run it.",
    )
