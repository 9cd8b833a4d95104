"""Where a training broke: the layer whose clip bound, weight, output or gradient went first."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.flows.training_groups import is_clip, is_scale, layer_of


def all_finite(loss: Tensor, gradients: list[Tensor]) -> bool:
    """Whether the loss and every gradient are finite, with one look at the device."""
    total = loss.detach().float()
    if gradients:
        total = total + torch.nn.utils.get_total_norm(gradients).float()
    return bool(torch.isfinite(total))


class Guard:
    """Finds the culprit in one model; parameters that are NaN from the start may be so."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._unused = {name for name, tensor in _parameters(model) if not _finite(tensor)}

    def culprit(
        self, batch: Any, again: Callable[[], Tensor], loss: Tensor | None
    ) -> tuple[str, str] | None:
        """(what went wrong first, the layer or ""); ``again`` computes the ``loss`` once more.

        Looked for in this order, because each explains the next: the batch; clip bounds and
        weights, layer after layer; the layers' outputs, in the order in which they run; the loss;
        the gradients, from the last layer on, because they flow backwards. None: all is finite.
        """
        if not _finite(batch):
            return "the batch holds NaN or infinity", ""
        for name, tensor in _parameters(self._model):
            if name not in self._unused and not _finite(tensor):
                return f"{_kind(name)} {name} is {_example(tensor)}", layer_of(name)
        gradients = [
            name
            for name, parameter in self._model.named_parameters()
            if parameter.grad is not None and not _finite(parameter.grad)
        ]
        layer = self._first_bad_output(again)
        if layer is not None:
            return "the layer's output holds NaN or infinity", layer
        if loss is not None and not _finite(loss):
            return f"the loss is {float(loss.detach())}, though every layer's output is finite", ""
        if gradients:
            layer = layer_of(gradients[-1])
            name = next(name for name in gradients if layer_of(name) == layer)
            return f"the gradient of {_kind(name)} {name} is not finite", layer
        return None

    def _first_bad_output(self, again: Callable[[], Tensor]) -> str | None:
        found: list[str] = []

        def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def look(module: nn.Module, inputs: Any, output: Any) -> None:
                if not found and not _finite(output):
                    found.append(layer_of(f"{name}.x"))

            return look

        with ExitStack() as stack, torch.no_grad():
            for name, module in self._model.named_modules():
                if name and not any(True for _ in module.children()):
                    stack.callback(module.register_forward_hook(hook(name)).remove)
            # It failed before or fails on what is not finite; the hooks have seen where.
            with suppress(Exception):
                again()
        return found[0] if found else None


def _parameters(model: nn.Module) -> list[tuple[str, Tensor]]:
    """All of them, layer after layer, clip bounds before the others of their layer."""
    parameters: list[tuple[str, Tensor]] = [*model.named_parameters()]
    layers = dict.fromkeys(layer_of(name) for name, _ in parameters)
    order = {layer: at for at, layer in enumerate(layers)}
    parameters.sort(key=lambda pair: (order[layer_of(pair[0])], not is_clip(pair[0])))
    return parameters


def _kind(name: str) -> str:
    if is_clip(name):
        return "the clip bound"
    return "the weight scale" if is_scale(name) else "the parameter"


def _example(tensor: Tensor) -> str:
    return str(tensor.detach()[~torch.isfinite(tensor)][0].item())


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return all(_finite(part) for part in value)
    return True
