"""How channel labels pass through operators that only move elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.fx import Node

from workbench.engine.graph.channel_labels import (
    Blocks,
    Channels,
    IntArray,
    reshape_labels,
    varying_axes,
)
from workbench.engine.graph.channel_state import (
    State,
    Value,
    axis_of,
    operator_name,
    rule,
    size_of,
)


@rule(
    "view", "reshape", "_unsafe_view", "view_as", "reshape_as", "flatten", "unflatten", "squeeze",
    "unsqueeze",
)  # fmt: skip
def reshape(state: State, node: Node) -> Value:
    before, after = state.shape(node.args[0]), state.shape(node)
    given, changed = reshape_labels(state.channels(node.args[0]), before, after)
    if given is None:
        return None
    result = state.settle(given, node)
    if changed or _named_sizes(node, given):
        state.resize(node, given, after)
    return result


def _named_sizes(node: Node, channels: IntArray) -> bool:
    """Whether a view gives the size of a labelled axis as a number."""
    sizes = node.args[1] if len(node.args) > 1 else None
    return isinstance(sizes, list | tuple) and any(
        axis < len(sizes) and sizes[axis] != -1 for axis in varying_axes(channels)
    )


@rule("permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "numpy_T", "mT")
def permute(state: State, node: Node) -> Value:
    given = state.channels(node.args[0])
    if given is None:
        return None
    # The operator itself moves the axes of an array that only numbers them.
    rank = given.ndim
    numbered = torch.empty(tuple(range(2, rank + 2)), device="meta")
    assert callable(node.target)
    moved = node.target(numbered, *node.args[1:], **node.kwargs)
    return np.transpose(given, [size - 2 for size in moved.shape])


@rule("expand", "expand_as", "broadcast_to")
def expand(state: State, node: Node) -> Value:
    given = state.channels(node.args[0])
    if given is None:
        return None
    after = state.shape(node)
    wide = given.reshape((1,) * (len(after) - given.ndim) + given.shape)
    if _named_sizes(node, wide):
        state.resize(node, wide, after)
    return wide


@rule("repeat", "tile")
def repeat(state: State, node: Node) -> Value:
    given, after = state.channels(node.args[0]), state.shape(node)
    if given is None:
        return None
    before = state.shape(node.args[0])
    wide = given.reshape((1,) * (len(after) - given.ndim) + given.shape)
    sizes = (1,) * (len(after) - len(before)) + before
    times = [
        new // old if labels > 1 else 1
        for new, old, labels in zip(after, sizes, wide.shape, strict=True)
    ]
    return state.settle(np.tile(wide, times), node)


@rule("repeat_interleave")
def repeat_interleave(state: State, node: Node) -> Value:
    given = state.channels(node.args[0])
    axis = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim")
    times = node.args[1]
    if given is None or not isinstance(axis, int) or not isinstance(times, int):
        return state.unknown(node)
    axis = axis_of(axis, given.ndim)
    return given if given.shape[axis] == 1 else np.repeat(given, times, axis=axis)


@rule("cat", "concat", "concatenate")
def concatenate(state: State, node: Node) -> Value:
    parts = node.args[0]
    assert isinstance(parts, list | tuple)
    axis = axis_of(_argument(node, 1, "dim", 0), len(state.shape(node)))
    return _join(state, node, [(state.channels(p), state.shape(p)) for p in parts], axis)


@rule("stack")
def stack(state: State, node: Node) -> Value:
    parts = node.args[0]
    assert isinstance(parts, list | tuple)
    axis = axis_of(_argument(node, 1, "dim", 0), len(state.shape(node)))
    joined = []
    for part in parts:
        channels, shape = state.channels(part), state.shape(part)
        wide = None if channels is None else np.expand_dims(channels, axis)
        joined.append((wide, (*shape[:axis], 1, *shape[axis:])))
    return _join(state, node, joined, axis)


def _join(
    state: State, node: Node, parts: list[tuple[Channels, tuple[int, ...]]], axis: int
) -> Channels:
    """Labels one after another along ``axis``; parts without labels stay as they are."""
    if all(channels is None for channels, _ in parts):
        return None
    wide = [c for c, _ in parts if c is not None and c.shape[axis] == 1]
    if len(wide) == len(parts):
        for other in wide[1:]:
            state.labels.unite(wide[0], other)
        return state.settle(np.broadcast_arrays(*wide)[0], node)
    # Axes other than the joined one vary where those of any part do.
    shape = [max(1 if c is None else c.shape[a] for c, _ in parts) for a in range(len(parts[0][1]))]
    pieces = []
    for channels, sizes in parts:
        wanted = [*shape[:axis], sizes[axis], *shape[axis + 1 :]]
        if channels is None:
            fixed = state.labels.fresh(*wanted)
            state.labels.freeze(fixed, f"it is joined in {state.place(node)} with fixed channels")
            pieces.append(fixed)
        else:
            pieces.append(np.broadcast_to(channels, wanted))
    return state.settle(np.concatenate(pieces, axis=axis), node)


@rule("split", "split_with_sizes", "chunk", "tensor_split")
def split(state: State, node: Node) -> Value:
    source = node.args[0]
    given, shape = state.channels(source), state.shape(source)
    count = len(node.meta["val"])
    axis = axis_of(_argument(node, 2, "dim", 0), len(shape))
    sizes = [state.shape(node, index)[axis] for index in range(count)]
    ends = np.cumsum(sizes)
    if given is None or given.shape[axis] == 1:
        return [given] * count
    _cut(state, node, given, axis, shape, tuple(int(end) for end in ends))
    pieces = np.split(given, ends[:-1], axis=axis)
    for index, piece in enumerate(pieces):
        state.resize(node, piece, state.shape(node, index))
    return [state.settle(piece, node) for piece in pieces]


@rule("slice")
def slice_axis(state: State, node: Node) -> Value:
    source = node.args[0]
    given, shape = state.channels(source), state.shape(source)
    axis = axis_of(_argument(node, 1, "dim", 0), len(shape))
    size = shape[axis]
    start = _argument(node, 2, "start", 0)
    end = _argument(node, 3, "end", size)
    step = _argument(node, 4, "step", 1)
    start, end = (_inside(edge, size, default) for edge, default in ((start, 0), (end, size)))
    if given is None or given.shape[axis] == 1 or (start, end, step) == (0, size, 1):
        return given
    if step != 1:
        return state.pin(given, [axis], node)
    ends = tuple(dict.fromkeys(edge for edge in (start, end, size) if edge > 0))
    _cut(state, node, given, axis, shape, ends)
    piece = given[(slice(None),) * axis + (slice(start, end),)]
    state.resize(node, piece, state.shape(node))
    return state.settle(piece, node)


@rule("narrow")
def narrow(state: State, node: Node) -> Value:
    axis = axis_of(_argument(node, 1, "dim", 0), len(state.shape(node.args[0])))
    return state.pin(state.channels(node.args[0]), [axis], node)


def _cut(
    state: State, node: Node, given: IntArray, axis: int, shape: tuple[int, ...], ends: Any
) -> None:
    """Both sides of a cut must lose the same share, or it would fall elsewhere."""
    state.labels.blocks.append(Blocks(given, axis, ends))
    state.resize(node, given, shape)


@rule("select")
def select(state: State, node: Node) -> Value:
    """One index of an axis: it would name another element if some before it went."""
    given = state.channels(node.args[0])
    axis = axis_of(_argument(node, 1, "dim", 0), len(state.shape(node.args[0])))
    index = _argument(node, 2, "index", 0)
    if given is None or given.shape[axis] == 1:
        return None if given is None else np.squeeze(given, axis)
    taken = np.take(given, index, axis=axis)
    pinned = state.pin(given, [axis], node)
    return None if pinned is None else state.settle(taken, node)


@rule("unbind")
def unbind(state: State, node: Node) -> Value:
    shape = state.shape(node.args[0])
    axis = axis_of(_argument(node, 1, "dim", 0), len(shape))
    given = state.pin(state.channels(node.args[0]), [axis], node)
    piece = None if given is None else np.squeeze(given, axis)
    return [piece] * shape[axis]


@rule("constant_pad_nd", "pad")
def pad(state: State, node: Node) -> Value:
    """Padding of a labelled axis brings elements that stay."""
    given, edges = state.channels(node.args[0]), node.args[1]
    mode = _argument(node, 2, "mode", "") if operator_name(node) == "pad" else ""
    assert isinstance(edges, list | tuple)
    if given is None:
        return None
    for position in range(len(edges) // 2):
        axis = given.ndim - 1 - position
        pair = edges[2 * position : 2 * position + 2]
        before, after = (edge if isinstance(edge, int) else 0 for edge in pair)
        if given.shape[axis] == 1 or (before, after) == (0, 0):
            continue
        if before < 0 or after < 0 or mode not in ("", "constant"):
            return state.pin(given, [axis], node)
        shape = list(given.shape)
        ends = []
        for width in (before, after):
            shape[axis] = width
            fixed = state.labels.fresh(*shape)
            state.labels.freeze(fixed, f"it is padding of {state.place(node)}")
            ends.append(fixed)
        given = np.concatenate([ends[0], given, ends[1]], axis=axis)
    return state.settle(given, node)


@rule("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(state: State, node: Node) -> Value:
    """[…, C·r·r, H, W] to […, C, r·H, r·W] and back: r·r neighbouring channels go together."""
    before, after = state.shape(node.args[0]), state.shape(node)
    given = state.channels(node.args[0])
    axis = len(before) - 3
    given = state.pin(given, [axis + 1, axis + 2], node)
    if given is None or given.shape[axis] == 1:
        return given
    if after[axis] > before[axis]:
        return np.repeat(given, after[axis] // before[axis], axis=axis)
    square = (*given.shape[:axis], after[axis], before[axis] // after[axis], 1, 1)
    united = state.labels.unite_along(given.reshape(square), [axis + 1])
    return state.settle(np.squeeze(united, axis + 1), node)


@rule("channel_shuffle")
def channel_shuffle(state: State, node: Node) -> Value:
    given = state.only_along(state.channels(node.args[0]), 1, node)
    groups = node.args[1]
    if given is None:
        return None
    assert isinstance(groups, int)
    table = given.reshape(1, groups, -1)
    state.settle(table, node)
    state.resize(node, given, state.shape(node))
    return state.settle(np.swapaxes(table, 1, 2).reshape(given.shape), node)


@rule("index")
def index(state: State, node: Node) -> Value:
    """Rows of a table: the indexed axes stay whole."""
    source, indices = node.args[0], node.args[1]
    given = state.channels(source)
    assert isinstance(indices, list | tuple)
    indexed = [axis for axis, one in enumerate(indices) if one is not None]
    given = state.pin(given, indexed, node)
    if given is None:
        return None
    if indexed != list(range(indexed[0], indexed[-1] + 1)):
        return state.unknown(node)
    added = len(state.shape(node)) - (given.ndim - len(indexed))
    first, last = indexed[0], indexed[-1] + 1
    return given.reshape((*given.shape[:first], *[1] * added, *given.shape[last:]))


@rule("index_select", "gather", "roll")
def whole_axis(state: State, node: Node) -> Value:
    given = state.channels(node.args[0])
    if node.target is torch.ops.aten.roll.default:
        axes = node.args[2] if len(node.args) > 2 else []
        bound = list(axes) if isinstance(axes, list | tuple) and axes else list(varying_axes(given))
    elif node.target is torch.ops.aten.index_select.default:
        bound = [node.args[1]]
    else:
        return state.unknown(node)
    rank = len(state.shape(node.args[0]))
    return state.pin(given, [axis_of(axis, rank) for axis in bound], node)


def _argument(node: Node, index: int, name: str, default: Any) -> Any:
    value = node.args[index] if len(node.args) > index else node.kwargs.get(name, default)
    if value is None:
        return default
    if isinstance(value, Node):
        return size_of(value.meta["val"])
    return value


def _inside(edge: int, size: int, default: int) -> int:
    edge = edge + size if edge < 0 else edge
    return min(max(edge, 0), size)
