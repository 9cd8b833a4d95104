"""What an exported graph says about channels: which parameters' axes carry which labels.

Labels of channels (``channel_labels``) are carried through the graph, one rule an operator
(``channel_layers``, ``channel_math``, ``channel_shapes``). An operator without a rule freezes what
it reads. Source: specification chapter 40 section 9.3.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from workbench.engine.graph import channel_layers, channel_math, channel_shapes
from workbench.engine.graph.capture import Captured
from workbench.engine.graph.channel_labels import IntArray, varying_axes
from workbench.engine.graph.channel_state import RULES, State, Value, operator_name

RULE_FILES = (channel_layers, channel_math, channel_shapes)
"""Importing them registers their rules."""

_LAYERS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


@dataclass(frozen=True, eq=False)
class AxisLabels:
    """One axis of one parameter and the label of each of its channels.

    ``owners``: every (module path, name) that holds the parameter. ``role``: producer (a layer's
    output axis), consumer (a layer's input axis) or pass (scales, biases, depthwise kernels).
    Of a grouped convolution's shared axis the labels of all ``groups`` follow each other.
    """

    owners: tuple[tuple[str, str], ...]
    axis: int
    role: str
    operator: str
    groups: int
    labels: IntArray
    order: int


@dataclass(frozen=True, eq=False)
class LabelBlocks:
    """Labels in the order of a tensor's axis; blocks end at ``ends`` and must shrink alike."""

    labels: IntArray
    ends: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class NumberedSize:
    """A size that the code of module ``scope`` may hold as a number, with the axis' labels."""

    scope: str
    operator: str
    labels: IntArray


@dataclass(frozen=True, eq=False)
class ChannelMap:
    """Equal labels must be removed together; those in ``frozen`` not at all, with the reason.

    ``producers``: module path of every layer with output channels in execution order; the reason
    why it cannot lose any, '' when the graph knows none.
    """

    axes: tuple[AxisLabels, ...]
    blocks: tuple[LabelBlocks, ...]
    sizes: tuple[NumberedSize, ...]
    frozen: Mapping[int, str]
    producers: Mapping[str, str]


def channel_map(captured: Captured, *, through_layer_norm: bool = False) -> ChannelMap:
    """Carry channel labels through ``captured``'s graph, once.

    ``through_layer_norm``: channels that a LayerNorm or RMSNorm normalises over may go too,
    although the statistics of the others change with them.
    """
    state = State(captured.module, captured.facts, through_layer_norm=through_layer_norm)
    for node in captured.program.graph.nodes:
        if node.op == "output":
            for source in node.all_input_nodes:
                state.labels.freeze(state.channels(source), "it is an output of the model")
        elif node.op == "call_function" and node in captured.facts.live:
            state.set(node, _apply(state, node))
    _tie_bare_parameters(state)
    state.labels.square()
    frozen: dict[int, str] = {}
    for event in state.labels.frozen:
        for root in np.unique(state.labels.roots(event.labels)).tolist():
            frozen.setdefault(root, event.reason)
    axes = tuple(sorted(_axes(state, frozen), key=lambda axis: axis.order))
    return ChannelMap(
        axes=axes,
        blocks=tuple(_blocks(state)),
        sizes=tuple(_sizes(state)),
        frozen=frozen,
        producers=_producers(captured, axes, frozen),
    )


def _apply(state: State, node: Node) -> Value:
    if node.target is operator.getitem:
        value, index = state.value(node.args[0]), node.args[1]
        if isinstance(value, list) and isinstance(index, int):
            return value[index]
        return state.unknown(node)
    if not isinstance(node.meta.get("val"), Tensor | list | tuple):
        return None
    found = RULES.get(operator_name(node))
    if found is not None:
        return found(state, node)
    if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags:
        return channel_math.pointwise(state, node)
    return state.unknown(node)


def _tie_bare_parameters(state: State) -> None:
    """A parameter that is read as a layer's and by itself has the same labels in both."""
    for (parameter, axis), slot in list(state.slots.items()):
        bare = state.slots.get((parameter, None))
        if axis is None or bare is None:
            continue
        labels = bare.labels
        if labels.shape[axis] != len(slot.labels):
            state.labels.freeze(slot.labels, "its weight is read outside its own call")
            continue
        others = [a for a in range(labels.ndim) if a != axis]
        state.labels.unite(slot.labels, state.labels.unite_along(labels, others).reshape(-1))


def _axes(state: State, frozen: dict[int, str]) -> list[AxisLabels]:
    found = []
    for slot in state.slots.values():
        roots, axis, kind = state.labels.roots(slot.labels), slot.axis, slot.kind
        if axis is None:
            axis, roots = _only_axis(roots, frozen)
            kind = "parameter"
        owners = tuple(state.owners.get(id(slot.parameter), ()))
        found.append(AxisLabels(owners, axis, slot.role, kind, slot.groups, roots, slot.order))
    return found


def _only_axis(roots: IntArray, frozen: dict[int, str]) -> tuple[int, IntArray]:
    """The axis along which a bare parameter shrinks, and the labels there."""
    axes = _varying(roots)
    if len(axes) > 1:
        for root in np.unique(roots).tolist():
            frozen.setdefault(root, "a parameter that it is combined with cannot shrink with it")
    axis = axes[0] if axes else roots.ndim - 1
    return axis, _line(roots, axis)


def _blocks(state: State) -> list[LabelBlocks]:
    found = []
    for block in state.labels.blocks:
        roots = state.labels.roots(block.labels)
        if _varying(roots) == [block.axis]:
            found.append(LabelBlocks(_line(roots, block.axis), block.ends))
    return found


def _sizes(state: State) -> list[NumberedSize]:
    found = []
    for resize in state.resizes:
        roots = state.labels.roots(resize.labels)
        roots = np.broadcast_to(
            roots, [n if m > 1 else 1 for n, m in zip(resize.shape, roots.shape, strict=True)]
        )
        found += [
            NumberedSize(resize.scope, resize.operator, _line(roots, axis))
            for axis in _varying(roots)
        ]
    return found


def _producers(
    captured: Captured, axes: tuple[AxisLabels, ...], frozen: dict[int, str]
) -> dict[str, str]:
    """The reason for each producer; what cannot lose channels freezes its labels."""
    modules = dict(captured.module.named_modules())
    reasons: dict[str, str] = {}
    for axis in axes:
        if axis.role != "producer":
            continue
        path, name = axis.owners[0]
        calls = len(captured.facts.calls.get(path, ()))
        reason = ""
        if not isinstance(modules[path], _LAYERS) or name != "weight":
            reason = f"its weight is that of {path} ({type(modules[path]).__name__})"
        elif len(axis.owners) > 1:
            reason = f"its weight is shared with {axis.owners[1][0]}"
        elif calls != 1:
            reason = f"it is called {calls} times"
        if reason:
            for root in np.unique(axis.labels).tolist():
                frozen[root] = frozen.get(root, reason)
        held = [root for root in np.unique(axis.labels).tolist() if root in frozen]
        if not reason and len(held) == len(np.unique(axis.labels)):
            reason = frozen[held[0]]
        for owner, _ in axis.owners:
            reasons[owner] = reason
    return reasons


def _varying(array: IntArray) -> list[int]:
    return [a for a in varying_axes(array) if not (array == np.take(array, [0], axis=a)).all()]


def _line(array: IntArray, axis: int) -> IntArray:
    line: IntArray = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])[0]
    return line
