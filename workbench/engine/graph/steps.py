"""A captured model as a graph of steps: one call of a module, or one operator of its own code."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Node

from workbench.engine.graph.capture import Captured

_aten = torch.ops.aten
_DROPOUTS = {
    _aten.dropout.default,
    _aten.feature_dropout.default,
    _aten.alpha_dropout.default,
    _aten.feature_alpha_dropout.default,
}

OUTPUT = -1
"""Stands for the model's output among the consumers of a step."""


@dataclass(frozen=True)
class Step:
    """``name``: the module's path, '' for an operator of the model's own code.

    ``consumers``: positions of the steps that read its result; ``OUTPUT`` for the model's output.
    """

    name: str
    consumers: tuple[int, ...]


@dataclass(frozen=True)
class StepGraph:
    """Steps in execution order; ``at``: module path -> the positions of its calls."""

    steps: tuple[Step, ...]
    at: Mapping[str, tuple[int, ...]] = field(repr=False)

    def only_consumer(self, position: int) -> int | None:
        """The one step that reads this one's result; None for more, none, or the output."""
        consumers = self.steps[position].consumers
        return consumers[0] if len(consumers) == 1 and consumers[0] != OUTPUT else None

    def routes(self, start: int, end: str) -> tuple[int, tuple[int, ...]]:
        """How many routes lead from ``start`` to a call of module ``end``, and one of them.

        Counted by dynamic programming: a nest of residual blocks has exponentially many.
        """
        last = max(self.at.get(end, (OUTPUT,)))
        counts: dict[int, int] = {}
        for position in range(last, start - 1, -1):
            step = self.steps[position]
            ends = step.name == end
            counts[position] = 1 if ends else sum(counts.get(c, 0) for c in step.consumers)
        if not counts.get(start):
            return 0, ()
        route = [start]
        while self.steps[route[-1]].name != end:
            route.append(next(c for c in self.steps[route[-1]].consumers if counts.get(c)))
        return counts[start], tuple(route)

    def is_chain(self, names: Iterable[str]) -> bool:
        """Whether each of these modules reads what the one before it gives."""
        reached: set[int] | None = None
        for name in names:
            here = set(self.at.get(name, ()))
            if reached is not None:
                here &= {c for position in reached for c in self.steps[position].consumers}
            if not here:
                return False
            reached = here
        return reached is not None


def find_steps(captured: Captured, kinds: Collection[str]) -> StepGraph:
    """The steps of a captured model; a call of a module of a class in ``kinds`` is one step.

    What the exporter to ONNX drops is no step either: dropout in eval mode, results nobody reads,
    and reads of a tensor's shape.
    """
    facts = captured.facts
    owner: dict[Node, int] = {}
    names: list[str] = []
    modules = dict(captured.module.named_modules())
    for path, calls in facts.calls.items():
        # Export puts operators of its own into scopes that are no modules.
        if path and type(modules.get(path)).__name__ in kinds:
            for call in calls:
                owner.update(dict.fromkeys(call.nodes, len(names)))
                names.append(path)
    groups: dict[object, list[Node]] = {}
    for node in facts.order:
        computes = node.op == "call_function" and node in facts.live and not _is_dropout(node)
        if computes and _holds_tensor(node):
            groups.setdefault(owner.get(node, node), []).append(node)
    # In the order of their last node, so that every consumer comes after what it reads.
    ordered = sorted(groups.items(), key=lambda item: facts.order[item[1][-1]])
    position = {node: at for at, (_, nodes) in enumerate(ordered) for node in nodes}
    steps = tuple(
        Step(
            names[key] if isinstance(key, int) else "",
            tuple(sorted({c for node in nodes for c in _readers(node, position)} - {at})),
        )
        for at, (key, nodes) in enumerate(ordered)
    )
    found: dict[str, tuple[int, ...]] = {}
    for at, step in enumerate(steps):
        if step.name:
            found[step.name] = (*found.get(step.name, ()), at)
    return StepGraph(steps, found)


def _readers(node: Node, position: Mapping[Node, int]) -> set[int]:
    found: set[int] = set()
    for user in node.users:
        if user.op == "output":
            found.add(OUTPUT)
        elif user in position:
            found.add(position[user])
        elif _is_dropout(user):
            found |= _readers(user, position)
    return found


def _is_dropout(node: Node) -> bool:
    return node.target in _DROPOUTS and not node.args[2]


def _holds_tensor(node: Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else (value,)
    return any(isinstance(item, Tensor) for item in values)
