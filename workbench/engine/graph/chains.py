"""Convolutions in a row with nothing between them but what a positive factor passes through."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.fx import Node

from workbench.engine.graph.capture import Captured
from workbench.engine.graph.eligibility import MAIN_OPERATORS

_aten = torch.ops.aten
_CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d")
_HOMOGENEOUS = {
    getattr(_aten, name).default
    for name in (
        *("relu", "relu_", "leaky_relu", "leaky_relu_", "dropout", "max_pool1d", "max_pool2d"),
        *("max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
    )
}


def scalable_pairs(captured: Captured, norms: Mapping[str, str]) -> dict[str, str]:
    """Convolution -> the layer, one of the keys of ``norms``, whose channels it alone reads.

    ``norms``: layer -> the batch norm that follows it. A channel of the layer may be multiplied by
    a positive factor in the norm and divided by it in the convolution: with ReLU, pooling and
    dropout between them the model computes the same.
    """
    operators = {
        node: name
        for name, info in captured.layers.items()
        if info.eligible and info.type in _CONVOLUTIONS and (info.groups == 1 or info.depthwise)
        for call in captured.facts.calls[name]
        for node in call.nodes
        if node.target in MAIN_OPERATORS[info.type]
    }
    pairs = {}
    for layer, norm in norms.items():
        node: Node | None = captured.facts.calls[norm][0].nodes[0]
        while node is not None and len(node.users) == 1:
            user = next(iter(node.users))
            if user.args[0] is not node or len(user.all_input_nodes) < 1:
                break
            if user in operators:
                pairs[operators[user]] = layer
                break
            node = user if user.target in _HOMOGENEOUS else None
    return pairs
