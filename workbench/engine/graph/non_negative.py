"""Which tensors of a captured model hold no negative value, by what computed them."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from workbench.engine.graph.capture import Captured
from workbench.engine.graph.eligibility import MAIN_OPERATORS

_aten = torch.ops.aten


def _operators(*names: str) -> frozenset[object]:
    """Every overload of these operators, in place or not."""
    found: set[object] = set()
    for name in (*names, *(f"{name}_" for name in names)):
        packet = getattr(_aten, name, None)
        if packet is not None:
            found.update(getattr(packet, overload) for overload in packet.overloads())
    return frozenset(found)


_SOURCES = _operators("relu", "relu6", "sigmoid", "hardsigmoid", "softmax", "abs", "exp", "square")
_CUTS = _operators("clamp", "clamp_min", "clip", "hardtanh")
# What picks, moves, averages or interpolates between values of its first argument.
_KEEP_SIGN = _operators(
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose"),
    *("contiguous", "clone", "alias", "detach", "expand", "select", "slice", "dropout", "to"),
    *("feature_dropout", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d"),
    *("avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    *("adaptive_max_pool1d", "adaptive_max_pool2d", "mean", "amax", "sum", "pixel_shuffle"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d"),
    *("upsample_linear1d", "upsample_trilinear3d", "channel_shuffle", "_to_copy"),
)
_JOINS = _operators("cat", "concat", "add", "mul", "maximum", "stack")
_RELU = _operators("relu")


def non_negative_input(captured: Captured, layer: str, *, compat: bool = False) -> bool:
    """Whether the graph shows that no value of a layer's input is negative.

    ReLU, ReLU6, sigmoid and the like give such tensors; pooling, dropout, changes of shape, sums
    and concatenations of them keep it so. ``compat``: the input's producer must be a ReLU itself,
    as in the reference. Chapter 30 section 4.3.
    """
    operators = MAIN_OPERATORS[captured.layers[layer].type]
    calls = captured.facts.calls.get(layer, [])
    main = [node for call in calls for node in call.nodes if node.target in operators]
    given = main[0].args[0] if main else None
    if not isinstance(given, Node):
        return False
    if compat:
        return given.target in _RELU
    return _non_negative(given, {})


def _non_negative(node: Any, known: dict[Node, bool]) -> bool:
    if isinstance(node, int | float):
        return node >= 0
    if not isinstance(node, Node):
        return False
    # A long chain of residual blocks must not exhaust Python's stack.
    pending = [node]
    while pending:
        current = pending[-1]
        missing = [n for n in _decisive(current) if isinstance(n, Node) and n not in known]
        if missing and current not in known:
            pending += missing
            continue
        pending.pop()
        known.setdefault(current, _decide(current, known))
    return known[node]


def _decisive(node: Node) -> list[Any]:
    """The arguments whose sign decides over that of the node."""
    if node.target in _KEEP_SIGN:
        return list(node.args[:1])
    if node.target in _JOINS:
        first = node.args[0]
        return list(first) if isinstance(first, list | tuple) else list(node.args[:2])
    return []


def _decide(node: Node, known: dict[Node, bool]) -> bool:
    if node.target in _SOURCES:
        return True
    if node.target in _CUTS:
        low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
        if low is None and node.target in _operators("hardtanh"):
            low = -1.0
        return isinstance(low, int | float) and low >= 0
    if any(isinstance(value, int | float) and value < 0 for value in node.kwargs.values()):
        return False  # add(alpha=-1) subtracts
    decisive = _decisive(node)
    return bool(decisive) and all(
        known[n] if isinstance(n, Node) else isinstance(n, int | float) and n >= 0 for n in decisive
    )
