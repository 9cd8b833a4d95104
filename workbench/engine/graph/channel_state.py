"""What is known while channel labels are carried through an exported program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from workbench.engine.graph.channel_labels import Channels, IntArray, Labels, varying_axes
from workbench.engine.graph.program import ProgramFacts

LARGEST_PARAMETER = 1 << 18
"""Of a bare parameter with more elements only the last axis has labels."""

Value = Channels | list[Channels]
Rule = Callable[["State", Node], Value]

RULES: dict[str, Rule] = {}
"""Name of an ATen operator, without the underscore of its in-place form -> what it does."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@dataclass
class Slot:
    """Labels of one axis of a parameter (``axis`` None: of a bare parameter, whole).

    ``labels`` has one entry for every channel that reads or writes the axis: of a grouped
    convolution's input axis those of all ``groups``, one group after another.
    """

    parameter: Tensor
    axis: int | None
    role: str
    kind: str
    groups: int
    labels: IntArray
    order: int


@dataclass(frozen=True)
class Resize:
    """A tensor whose sizes an operator states in numbers, which the model's code may hold."""

    scope: str
    operator: str
    labels: IntArray
    shape: tuple[int, ...]


class State:
    """Labels of every node so far, of every parameter, and what restricts their removal."""

    def __init__(self, module: nn.Module, facts: ProgramFacts, *, through_layer_norm: bool) -> None:
        self.facts = facts
        self.through_layer_norm = through_layer_norm
        self.labels = Labels()
        self.slots: dict[tuple[int, int | None], Slot] = {}
        self.resizes: list[Resize] = []
        self._env: dict[Node, Value] = {}
        self._bare: dict[int, Channels] = {}
        self.owners: dict[int, list[tuple[str, str]]] = {}
        for path, owner in module.named_modules():
            own = [*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)]
            for name, tensor in own:
                self.owners.setdefault(id(tensor), []).append((path, name))

    def set(self, node: Node, value: Value) -> None:
        self._env[node] = value

    def value(self, argument: Any) -> Value:
        return self._env.get(argument) if isinstance(argument, Node) else None

    def channels(self, argument: Any) -> Channels:
        """Labels of an argument; a bare parameter gets its own when it is first used."""
        if not isinstance(argument, Node):
            return None
        tensor = self.facts.source.get(argument)
        if tensor is not None:
            return self._bare_parameter(tensor)
        value = self._env.get(argument)
        return None if isinstance(value, list) else value

    def shape(self, argument: Any, index: int = 0) -> tuple[int, ...]:
        """The example shape of a node (of its ``index``-th result)."""
        value = argument.meta.get("val") if isinstance(argument, Node) else None
        if isinstance(value, list | tuple):
            value = value[index] if index < len(value) else None
        return tuple(map(size_of, value.shape)) if isinstance(value, Tensor) else ()

    def parameter(self, argument: Any) -> Tensor | None:
        return self.facts.source.get(argument) if isinstance(argument, Node) else None

    def attach(
        self,
        argument: Any,
        axis: int,
        labels: IntArray,
        node: Node,
        *,
        role: str = "pass",
        groups: int = 1,
    ) -> None:
        """Say that ``axis`` of the parameter ``argument`` follows ``labels``."""
        parameter = self.parameter(argument)
        if parameter is None:
            if isinstance(argument, Node):
                self.labels.freeze(labels, f"a weight of {self.place(node)} is computed")
            return
        key = (id(parameter), axis)
        known = self.slots.get(key)
        if known is not None:
            self.labels.unite(known.labels, labels)
            return
        kind = operator_name(node)
        order = self.facts.order[node]
        self.slots[key] = Slot(parameter, axis, role, kind, groups, labels, order)

    def producer(self, argument: Any, axis: int, count: int, node: Node) -> IntArray:
        """Labels of a layer's outputs; a layer that runs again has the ones it had."""
        parameter = self.parameter(argument)
        assert parameter is not None
        key = (id(parameter), axis)
        if key not in self.slots:
            self.attach(argument, axis, self.labels.fresh(count), node, role="producer")
        return self.slots[key].labels

    def resize(self, node: Node, channels: Channels, shape: Sequence[int]) -> None:
        if channels is not None:
            self.resizes.append(
                Resize(self.facts.scope[node], operator_name(node), channels, tuple(shape))
            )

    def unknown(self, node: Node) -> Value:
        """An operator without a rule: everything it reads must stay."""
        reason = f"{operator_name(node)} of {self.place(node)} is not understood"
        for argument in node.all_input_nodes:
            value = self.value(argument)
            for channels in value if isinstance(value, list) else [self.channels(argument)]:
                self.labels.freeze(channels, reason)
        return None

    def place(self, node: Node) -> str:
        """Where an operator is, in words."""
        scope = self.facts.scope.get(node, "")
        return scope or "the model itself"

    def settle(self, labels: IntArray, node: Node) -> Channels:
        reason = f"{operator_name(node)} of {self.place(node)} ties all its channels together"
        return self.labels.settle(labels, reason)

    def pin(
        self,
        channels: Channels,
        axes: Iterable[int],
        node: Node,
        why: str = "needs every channel",
    ) -> Channels:
        """Forbid removing along ``axes`` because of what ``node`` computes there."""
        axes = set(axes)
        bound = [axis for axis in varying_axes(channels) if axis in axes]
        if channels is None or not bound:
            return channels
        reason = f"{operator_name(node)} of {self.place(node)} {why}"
        return self.labels.pin(channels, bound, reason)

    def only_along(self, channels: Channels, axis: int, node: Node) -> Channels:
        """Forbid removing along all axes but one."""
        return self.pin(channels, [a for a in varying_axes(channels) if a != axis], node)

    def _bare_parameter(self, tensor: Tensor) -> Channels:
        if id(tensor) not in self._bare:
            labels: Channels = None
            if tensor.dim() and tensor.numel() > 1:
                full = tensor.numel() <= LARGEST_PARAMETER
                shape = [n if full else 1 for n in tensor.shape[:-1]] + [tensor.shape[-1]]
                labels = self.labels.fresh(*shape) if prod(shape) > 1 else None
            if labels is not None:
                order = len(self.facts.order)
                self.slots[id(tensor), None] = Slot(tensor, None, "pass", "", 1, labels, order)
            self._bare[id(tensor)] = labels
        return self._bare[id(tensor)]


def size_of(size: int | torch.SymInt) -> int:
    """A size of the example the program was exported from."""
    if isinstance(size, torch.SymInt):
        hint = size.node.hint
        return int(hint) if hint is not None else 0
    return int(size)


def operator_name(node: Node) -> str:
    """An operator's name without its overload and without the underscore of the in-place form."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.split("::")[-1]
        return name if name.startswith("__") else name.rstrip("_")
    return getattr(target, "__name__", str(target))


def axis_of(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis


def along(channels: Channels, axis: int, size: int) -> IntArray | None:
    """Labels along one axis, full length, of a tensor whose labels vary on no other."""
    if channels is None:
        return None
    line = np.moveaxis(channels, axis, -1).reshape(-1, channels.shape[axis])[0]
    return np.broadcast_to(line, (size,))
