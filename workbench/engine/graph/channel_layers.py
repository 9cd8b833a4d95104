"""How channel labels pass through layers with weights: convolutions, linear, norms, embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.fx import Node

from workbench.engine.graph.channel_labels import Blocks, Channels, varying_axes
from workbench.engine.graph.channel_math import combine, contract
from workbench.engine.graph.channel_state import State, Value, along, operator_name, rule


def argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    """An operator's argument, given by position or by name."""
    if len(node.args) > index:
        return node.args[index]
    return node.kwargs.get(name, default)


@rule("conv1d", "conv2d", "conv3d")
def convolution(state: State, node: Node) -> Value:
    weight = argument(node, 1, "weight")
    return _convolve(state, node, weight, argument(node, 6, "groups", 1), transposed=False)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(state: State, node: Node) -> Value:
    weight = argument(node, 1, "weight")
    return _convolve(state, node, weight, argument(node, 6, "groups", 1), transposed=True)


def _convolve(state: State, node: Node, weight: Any, groups: int, *, transposed: bool) -> Value:
    """Input axis 1, output axis 1; an output channel of a depthwise kernel follows its input."""
    given = state.channels(argument(node, 0, "input"))
    rank = len(state.shape(argument(node, 0, "input")))
    kernel = state.shape(weight)
    if rank != len(kernel) or not _plain_weight(state, node, weight):
        reason = "is called without a batch" if rank != len(kernel) else "has a weight that is"
        reason += "" if rank != len(kernel) else " computed or read elsewhere"
        state.labels.freeze(given, f"{state.place(node)} {reason}")
        return None
    given = state.only_along(given, 1, node)
    inputs = kernel[0] if transposed else kernel[1] * groups
    outputs = kernel[1] * groups if transposed else kernel[0]
    incoming = along(given, 1, inputs)
    bias = argument(node, 2, "bias")
    shape = [1] * len(kernel)
    if groups > 1 and groups == inputs and not (transposed and kernel[1] > 1):
        if incoming is None:
            return None
        made = np.repeat(incoming, outputs // inputs)
        state.attach(weight, 0, made, node)
    else:
        if incoming is not None:
            axis = 0 if transposed else 1
            state.attach(weight, axis, incoming, node, role="consumer", groups=groups)
            _equal_groups(state, incoming, groups)
        axis = 1 if transposed else 0
        made = state.producer(weight, axis, outputs, node)
        _equal_groups(state, made, groups)
        if transposed:
            state.slots[id(state.parameter(weight)), axis].groups = groups
    if bias is not None:
        state.attach(bias, 0, made, node)
    shape[1] = outputs
    return state.settle(made.reshape(shape), node)


def _plain_weight(state: State, node: Node, weight: Any) -> bool:
    """Whether a weight is a parameter that only layers of this operator read, as their weight."""
    return _read_only_by(state, weight, {operator_name(node): 1})


def _linear_weight(state: State, weight: Any) -> bool:
    """Whether a weight is a parameter that only linear layers and embeddings read."""
    return _read_only_by(state, weight, {"linear": 1, "embedding": 0})


def _read_only_by(state: State, weight: Any, positions: Mapping[str, int]) -> bool:
    parameter = state.parameter(weight)
    if parameter is None:
        return False
    readers = [n for n in state.facts.readers.get(id(parameter), []) if n in state.facts.live]
    return all(
        operator_name(reader) in positions
        and reader.args[positions[operator_name(reader)]] is not None
        and state.parameter(reader.args[positions[operator_name(reader)]]) is parameter
        for reader in readers
    )


def _equal_groups(state: State, labels: Any, groups: int) -> None:
    if groups > 1:
        size = len(labels) // groups
        state.labels.blocks.append(Blocks(labels, 0, tuple(range(size, len(labels) + 1, size))))


@rule("linear")
def linear(state: State, node: Node) -> Value:
    source, weight = node.args[0], node.args[1]
    given = state.channels(source)
    rank = len(state.shape(source))
    if not _linear_weight(state, weight):
        letters = "abcdefgh"[: rank - 1]
        made = contract(state, node, (source, letters + "y"), (weight, "zy"), letters + "z")
        bias = argument(node, 2, "bias")
        if bias is None:
            return made
        other = state.channels(bias), state.shape(bias)
        return combine(state, node, (made, state.shape(node)), other)
    outputs, inputs = state.shape(weight)
    given = state.only_along(given, rank - 1, node)
    incoming = along(given, rank - 1, inputs)
    if incoming is not None:
        state.attach(weight, 1, incoming, node, role="consumer")
    made = state.producer(weight, 0, outputs, node)
    bias = argument(node, 2, "bias")
    if bias is not None:
        state.attach(bias, 0, made, node)
    return state.settle(made.reshape([1] * (rank - 1) + [outputs]), node)


@rule("embedding")
def embedding(state: State, node: Node) -> Value:
    table = node.args[0]
    if not _linear_weight(state, table):
        return state.unknown(node)
    width = state.shape(table)[1]
    parameter = state.parameter(table)
    key = (id(parameter), 1)
    if key not in state.slots:
        state.attach(table, 1, state.labels.fresh(width), node)
    rank = len(state.shape(node))
    return state.settle(state.slots[key].labels.reshape([1] * (rank - 1) + [width]), node)


@rule("batch_norm", "instance_norm")
def channel_norm(state: State, node: Node) -> Value:
    """Statistics of each channel of axis 1 alone."""
    given = state.only_along(state.channels(node.args[0]), 1, node)
    _parameters(state, node, given, 1, node.args[1:5])
    return given


@rule("group_norm")
def group_norm(state: State, node: Node) -> Value:
    """Statistics over equal groups of axis 1: each must lose as many channels as the others."""
    given = state.only_along(state.channels(node.args[0]), 1, node)
    size = state.shape(node.args[0])[1]
    groups = node.args[1]
    assert isinstance(groups, int)
    labels = along(given, 1, size)
    if labels is not None:
        if groups < size:
            _equal_groups(state, labels, groups)
        else:
            state.labels.freeze(given, f"{state.place(node)} has as many groups as channels")
        _parameters(state, node, given, 1, [argument(node, 2, "weight"), argument(node, 3, "bias")])
    return given


@rule("layer_norm", "rms_norm")
def layer_norm(state: State, node: Node) -> Value:
    """Statistics over the last axes: losing channels there changes them for all others."""
    given = state.channels(node.args[0])
    shape = state.shape(node.args[0])
    sizes = node.args[1]
    assert isinstance(sizes, list)
    last = range(len(shape) - len(sizes), len(shape))
    bound = [axis for axis in varying_axes(given) if axis in last]
    if state.through_layer_norm and bound == [len(shape) - 1] and len(sizes) == 1:
        given = state.only_along(given, len(shape) - 1, node)
        weights = [argument(node, 2, "weight")]
        if operator_name(node) == "layer_norm":
            weights.append(argument(node, 3, "bias"))
        _parameters(state, node, given, len(shape) - 1, weights)
        return given
    if given is None or not bound:
        return given
    reason = (
        f"{state.place(node)} normalises over these channels, so that losing some changes the rest"
    )
    return state.labels.pin(given, bound, reason)


@rule("prelu")
def prelu(state: State, node: Node) -> Value:
    """One slope, or one a channel of axis 1."""
    given = state.channels(node.args[0])
    if state.shape(node.args[1]) not in ((1,), ()):
        given = state.only_along(given, 1, node)
        _parameters(state, node, given, 1, [node.args[1]])
    return given


def _parameters(state: State, node: Node, given: Channels, axis: int, weights: Any) -> None:
    labels = along(given, axis, state.shape(node.args[0])[axis])
    for weight in weights:
        if weight is not None and labels is not None:
            state.attach(weight, 0, labels, node)
