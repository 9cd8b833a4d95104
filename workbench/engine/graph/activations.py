"""The activation function that follows a layer, when nothing else reads the layer's output."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from workbench.engine.graph.capture import Captured
from workbench.engine.graph.eligibility import MAIN_OPERATORS

_aten = torch.ops.aten

_FUNCTIONS: dict[object, Callable[..., Tensor]] = {
    getattr(_aten, name).default: getattr(_aten, pure).default
    for pure in (
        "relu",
        "sigmoid",
        "tanh",
        "leaky_relu",
        "prelu",
        "relu6",
        "gelu",
        "silu",
        "hardswish",
        "rrelu",
        "hardtanh",
        "clamp",
        "clip",
    )
    for name in (pure, f"{pure}_")
    if hasattr(_aten, name)
}
"""Operator, in place or not -> the one that leaves its argument alone (chapter 10 section 8.2)."""

_CUTS = {_aten.hardtanh.default, _aten.clamp.default, _aten.clip.default}
"""Of these only the cut to [0, 6] is an activation."""


@dataclass(frozen=True)
class Activation:
    """An activation function with its constants; calling it never writes to its argument."""

    name: str
    function: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def __call__(self, x: Tensor) -> Tensor:
        constants = (a.to(x.dtype) if isinstance(a, Tensor) else a for a in self.arguments)
        return self.function(x, *constants, **self.keywords)


def following_activation(
    captured: Captured, name: str, folded: Collection[str] = ()
) -> Activation | None:
    """The activation that alone reads the output of layer ``name``; None when there is none.

    ``folded`` are the paths of batch norms that have gone into their convolution: the activation
    after them counts. Dropout does nothing in eval mode and is stepped over. Known are ReLU, ReLU6,
    Sigmoid, Tanh, LeakyReLU, PReLU (its slope as it is), RReLU, GELU, SiLU and Hardswish.
    """
    node = main_node(captured, name)
    while node is not None and len(node.users) == 1:
        user = next(iter(node.users))
        if not user.args or user.args[0] is not node or len(user.all_input_nodes) == 0:
            return None
        if is_identity(captured, user, folded):
            node = user
            continue
        return _activation(captured, user)
    return None


def main_node(captured: Captured, name: str) -> Node | None:
    """The operator that is layer ``name`` itself; None when it runs more than once or never."""
    operators = MAIN_OPERATORS.get(captured.layers[name].type, frozenset())
    calls = captured.facts.calls.get(name, [])
    nodes = [node for call in calls for node in call.nodes if node.target in operators]
    return nodes[0] if len(nodes) == 1 else None


def is_identity(captured: Captured, node: Node, folded: Collection[str]) -> bool:
    """Whether a node does nothing to its argument: a folded batch norm, dropout in eval mode."""
    if node.target is _aten.batch_norm.default:
        return captured.facts.scope[node] in folded
    return node.target is _aten.dropout.default and not node.args[2]


def _activation(captured: Captured, node: Node) -> Activation | None:
    function = _FUNCTIONS.get(node.target)
    if function is None:
        return None
    arguments: list[Any] = []
    for argument in node.args[1:]:
        if isinstance(argument, Node):
            tensor = captured.facts.source.get(argument)
            if tensor is None:
                return None
            argument = tensor.detach()
        arguments.append(argument)
    if any(isinstance(value, Node) for value in node.kwargs.values()):
        return None
    if function in _CUTS and (node.kwargs or [float(a) for a in arguments] != [0.0, 6.0]):
        return None
    if function is _aten.rrelu.default and len(arguments) > 2 and arguments[2]:
        return None
    return Activation(str(node.target), function, tuple(arguments), dict(node.kwargs))
