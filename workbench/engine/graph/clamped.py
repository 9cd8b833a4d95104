"""Layer inputs that are another observed tensor, clamped: their extremes follow from that one's."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from workbench.engine.graph.activations import is_identity, main_node
from workbench.engine.graph.capture import Captured
from workbench.engine.graph.sources import input_names

_aten = torch.ops.aten
_FIXED = {
    _aten.relu.default: (0.0, math.inf),
    _aten.relu_.default: (0.0, math.inf),
    _aten.relu6.default: (0.0, 6.0),
    _aten.relu6_.default: (0.0, 6.0),
}
_GIVEN = {
    _aten.hardtanh.default,
    _aten.hardtanh_.default,
    _aten.clamp.default,
    _aten.clamp_.default,
}


@dataclass(frozen=True)
class Clamped:
    """A tensor that is the one called ``key``, clamped to ``low`` and ``high``.

    ``key`` as in the ranges of a calibration: a layer (its output) or ``input:NAME``.
    """

    key: str
    low: float
    high: float

    def __call__(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)


def clamped_inputs(
    captured: Captured, layers: Collection[str], folded: Collection[str] = ()
) -> dict[str, Clamped]:
    """Layer of ``layers`` -> what its input is a clamp of, where that is an observed tensor.

    Observed are the inputs and the outputs of ``layers``; sums are found again by counting, which
    is not certain enough. ``folded`` are the paths of batch norms that have gone into their
    convolution. Tensors that may be written to before the layer reads them are left out.
    """
    inputs = set(input_names(captured))
    keys = {
        node: f"input:{node.name}"
        for node in captured.program.graph.find_nodes(op="placeholder")
        if node.name in inputs
    }
    mains = {name: node for name in layers if (node := main_node(captured, name)) is not None}
    keys.update((node, name) for name, node in mains.items())
    found = {}
    for name, main in mains.items():
        source = main.args[0]
        if isinstance(source, Node) and not any(_aliases(user, source) for user in source.users):
            clamped = _clamped(captured, source, keys, folded)
            if clamped is not None:
                found[name] = clamped
    return found


def _clamped(
    captured: Captured, node: Node, keys: Mapping[Node, str], folded: Collection[str]
) -> Clamped | None:
    low, high = -math.inf, math.inf
    while node not in keys:
        bounds = (-math.inf, math.inf) if is_identity(captured, node, folded) else _bounds(node)
        parent = node.args[0] if bounds is not None else None
        if bounds is None or not isinstance(parent, Node) or len(parent.users) != 1:
            return None
        # The clamps found so far come after this one.
        low, high = (min(max(bound, low), high) for bound in bounds)
        node = parent
    return Clamped(keys[node], low, high)


def _bounds(node: Node) -> tuple[float, float] | None:
    """What an operator clamps its argument to; None for one that does anything else."""
    if node.target in _FIXED:
        return _FIXED[node.target]
    if node.target not in _GIVEN:
        return None
    _, *parameters = node.target._schema.arguments
    values: list[Any] = [node.kwargs.get(p.name, p.default_value) for p in parameters]
    values[: len(node.args) - 1] = node.args[1:]
    if any(isinstance(value, Node) for value in values):
        return None
    low, high = (
        default if value is None else float(value)
        for value, default in zip(values, (-math.inf, math.inf), strict=True)
    )
    return min(low, high), high


def _aliases(user: Node, node: Node) -> bool:
    """Whether an operator writes to ``node`` or returns a view of it."""
    if not isinstance(user.target, torch._ops.OpOverload):
        return False
    given = zip(user.target._schema.arguments, user.args, strict=False)
    return any(argument.alias_info is not None and value is node for argument, value in given)
