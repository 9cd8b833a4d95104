"""Which LSTM and GRU can be quantised (chapter 10 sections 6.2 rule 8 and 6.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.fx import Node

from workbench.engine.graph.program import ProgramFacts
from workbench.engine.graph.rnn import PARTS

_aten = torch.ops.aten

_FILLS = frozenset(
    {
        _aten.zeros.default,
        _aten.ones.default,
        _aten.full.default,
        _aten.zeros_like.default,
        _aten.ones_like.default,
        _aten.full_like.default,
        _aten.new_zeros.default,
        _aten.new_ones.default,
        _aten.new_full.default,
    }
)
"""Operators whose result holds nothing of their inputs but a size."""


def rnn_obstacle(
    path: str,
    layer: nn.Module,
    main: Node | None,
    facts: ProgramFacts,
    owners: Mapping[int, Sequence[str]],
) -> str:
    """Why a layer that is called once cannot be quantised, in plain words; '' when it can."""
    if not isinstance(layer, nn.LSTM | nn.GRU):
        return f"its class is not torch.nn.{type(layer).__name__}"
    return _settings_obstacle(layer) or _graph_obstacle(path, layer, main, facts, owners)


def _settings_obstacle(layer: nn.LSTM | nn.GRU) -> str:
    if layer.num_layers != 1:
        return f"it stacks {layer.num_layers} layers; only num_layers=1 can be quantised"
    if layer.bidirectional:
        return "it is bidirectional; only one direction can be quantised"
    if layer.dropout:
        return f"it has dropout {layer.dropout}; only dropout=0 can be quantised"
    if layer.proj_size:
        return f"it projects its state (proj_size {layer.proj_size}); only proj_size=0 is supported"
    if layer.weight_ih_l0.dtype == torch.float16:
        return "it computes in float16, for which ONNX Runtime has no recurrent operator"
    return ""


def _graph_obstacle(
    path: str,
    layer: nn.LSTM | nn.GRU,
    main: Node | None,
    facts: ProgramFacts,
    owners: Mapping[int, Sequence[str]],
) -> str:
    parameters = {name: getattr(layer, name, None) for name in PARTS if hasattr(layer, name)}
    for name, parameter in parameters.items():
        if id(parameter) not in owners:
            return f"its {name} is computed from other tensors"
        others = [other for other in owners[id(parameter)] if other != f"{path}.{name}"]
        if others:
            return f"its {name} is shared with {', '.join(others)}"
    if main is None:
        return "its computation is not the one operator expected of this layer type"
    if main not in facts.live:
        return "its result is not used"
    x, state, weights = main.args[:3]
    if isinstance(x, Node) and facts.scope.get(x) == path:
        return "its input is unbatched (2 dimensions instead of 3)"
    if isinstance(x, Node) and x in facts.constant:
        return "its input is a constant"
    for part in state if isinstance(state, list | tuple) else [state]:
        if not isinstance(part, Node) or facts.scope.get(part) == path:
            return "it is called without an initial state; pass h0 (and c0) from the model's inputs"
        if not _derives_from_input(part, facts):
            return "its initial state is the same for every input; it must come from a model input"
    given = list(weights) if isinstance(weights, list | tuple) else []
    if [facts.source.get(node) for node in given] != list(parameters.values()):
        return "its weights are computed from other tensors"
    for name, parameter in parameters.items():
        outside = [facts.scope[n] for n in facts.readers.get(id(parameter), ()) if n is not main]
        if outside:
            return f"its {name} is read outside its own call (in '{outside[0]}')"
    return ""


def _derives_from_input(node: Node, facts: ProgramFacts) -> bool:
    """Whether the exported value depends on a model input, by its content or its dynamic size."""
    pending, seen = [node], {node}
    while pending:
        current = pending.pop()
        if current in facts.constant:
            continue
        if current.op == "placeholder":
            return True
        if current.target in _FILLS:
            value = current.meta.get("val")
            if isinstance(value, Tensor) and any(isinstance(n, torch.SymInt) for n in value.shape):
                return True
            continue
        fresh = [n for n in current.all_input_nodes if n not in seen]
        seen.update(fresh)
        pending += fresh
    return False
