"""Which tensor a layer reads, and which the model does, by their names in the captured graph."""

from __future__ import annotations

from torch import Tensor
from torch.fx import Node

from workbench.engine.graph.capture import Captured
from workbench.engine.graph.program import mutates


def input_sources(captured: Captured) -> dict[str, str]:
    """Eligible layer -> name of the node whose output it reads; equal names mean equal values.

    A tensor that some operator writes to in place gets no shared name: its readers may see
    different values.
    """
    sources: dict[str, str] = {}
    for name, info in captured.layers.items():
        calls = captured.facts.calls.get(name, ())
        if not info.eligible or not calls:
            continue
        main = calls[0].nodes[0]
        source = main.args[0]
        if not isinstance(source, Node) or any(mutates(user) for user in source.users):
            sources[name] = f"{name}#input"
        else:
            sources[name] = source.name
    return sources


def input_shapes(captured: Captured) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor input as captured, 0 for a dynamic dimension."""
    names = set(input_names(captured))
    return {
        node.name: tuple(n if isinstance(n, int) else 0 for n in node.meta["val"].shape)
        for node in captured.program.graph.find_nodes(op="placeholder")
        if node.name in names and isinstance(node.meta.get("val"), Tensor)
    }


def input_names(captured: Captured) -> tuple[str, ...]:
    """Names of the model's inputs in call order: positional ones, then keywords."""
    return tuple(str(name) for name in captured.program.graph_signature.user_inputs)
