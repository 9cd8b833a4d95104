"""Which tensor a layer reads, by its name in the captured graph."""

from __future__ import annotations

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


def input_names(captured: Captured) -> tuple[str, ...]:
    """Names of the model's inputs in call order: positional ones, then keywords."""
    return tuple(str(name) for name in captured.program.graph_signature.user_inputs)
