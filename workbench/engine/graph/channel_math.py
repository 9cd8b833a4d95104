"""How channel labels pass through operators that compute: pointwise, products, reductions."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import Node

from workbench.engine.graph.channel_labels import Channels, varying_axes
from workbench.engine.graph.channel_state import State, Value, axis_of, rule

SAME = (
    "dropout", "feature_dropout", "alpha_dropout", "hardswish", "contiguous",
    "to", "_to_copy", "detach", "detach_copy", "alias", "lift_fresh_copy", "clone", "zeros_like",
    "ones_like", "full_like", "rand_like", "randn_like", "empty_like", "rrelu", "log_sigmoid",
    "type_as",
)  # fmt: skip
"""Operators that treat every element alone although torch does not tag them as pointwise."""


def pointwise(state: State, node: Node) -> Value:
    """Tensors that are combined element by element share their labels."""
    result: Channels = None
    shape: tuple[int, ...] = ()
    for argument in tensors(node):
        other, size = state.channels(argument), state.shape(argument)
        result = combine(state, node, (result, shape), (other, size))
        shape = tuple(np.broadcast_shapes(shape, size))
    return result


def tensors(node: Node) -> list[Node]:
    """The tensor arguments of a node, in order and with repetitions."""
    given = [*node.args, *node.kwargs.values()]
    return [a for a in given if isinstance(a, Node) and isinstance(a.meta.get("val"), Tensor)]


def combine(
    state: State,
    node: Node,
    one: tuple[Channels, tuple[int, ...]],
    other: tuple[Channels, tuple[int, ...]],
) -> Channels:
    """Labels of two broadcast tensors, each with its shape, combined element by element.

    Where one of them has no labels nothing can be removed along the axes that it fills.
    """
    rank = max(len(one[1]), len(other[1]))
    (first, left), (second, right) = (_padded(*operand, rank) for operand in (one, other))
    if first is None or second is None:
        held, fixed = (first, right) if second is None else (second, left)
        bound = [axis for axis in range(rank) if fixed[axis] > 1]
        return state.pin(held, bound, node, "combines it with channels that stay")
    state.labels.unite(first, second)
    return state.settle(np.broadcast_arrays(first, second)[0], node)


def _padded(
    channels: Channels, shape: tuple[int, ...], rank: int
) -> tuple[Channels, tuple[int, ...]]:
    missing = (1,) * (rank - len(shape))
    shaped = None if channels is None else channels.reshape(missing + channels.shape)
    return shaped, missing + shape


@rule(*SAME)
def same(state: State, node: Node) -> Value:
    return state.channels(node.args[0])


@rule("native_dropout")
def dropout_with_mask(state: State, node: Node) -> Value:
    given = state.channels(node.args[0])
    return [given, given]


@rule("glu")
def gated_linear_unit(state: State, node: Node) -> Value:
    """The first half of an axis times a gate made of the second."""
    shape = state.shape(node.args[0])
    axis = axis_of(_int(node, 1, "dim", -1), len(shape))
    given = state.channels(node.args[0])
    half = shape[axis] // 2
    if axis not in varying_axes(given) or given is None:
        return given
    cut = (slice(None),) * axis
    first, second = given[(*cut, slice(None, half))], given[(*cut, slice(half, None))]
    state.labels.unite(first, second)
    return state.settle(first, node)


@rule(
    "softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "flip",
    "logcumsumexp",
)  # fmt: skip
def along_axis(state: State, node: Node) -> Value:
    """Every element along the axis depends on the others there."""
    rank = len(state.shape(node.args[0]))
    axes: Any = node.args[1] if isinstance(node.args[1], list) else [node.args[1]]
    return state.pin(state.channels(node.args[0]), [axis_of(a, rank) for a in axes], node)


@rule(
    "mean", "sum", "amax", "amin", "var", "std", "logsumexp", "linalg_vector_norm", "norm",
    "any", "all",
)  # fmt: skip
def reduction(state: State, node: Node) -> Value:
    """Axes that are reduced away; the ones that stay keep their labels."""
    shape = state.shape(node.args[0])
    axes, keep = _reduced(node, len(shape))
    given = state.pin(state.channels(node.args[0]), axes, node)
    if given is None or keep:
        return given
    return np.squeeze(given, axis=tuple(axes))


@rule("max", "min")
def extreme(state: State, node: Node) -> Value:
    """Over all elements, along one axis with the indices there, or of two tensors."""
    other = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if isinstance(other, Node):
        return pointwise(state, node)
    found = reduction(state, node)
    return found if other is None or isinstance(found, list) else [found, found]


def _reduced(node: Node, rank: int) -> tuple[list[int], bool]:
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    values = dict(zip(names, node.args, strict=False)) | node.kwargs
    axes = values.get("dim")
    if axes is None or axes == []:
        return list(range(rank)), bool(values.get("keepdim", False))
    given = list(axes) if isinstance(axes, list | tuple) else [axes]
    return [axis_of(int(axis), rank) for axis in given], bool(values.get("keepdim", False))


@rule(
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d",
    "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d", "reflection_pad1d",
    "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
    "replication_pad3d",
)  # fmt: skip
def spatial(state: State, node: Node) -> Value:
    """Operators on positions: the sizes that they change must be those of unlabelled axes."""
    before, after = state.shape(node.args[0]), state.shape(node)
    given = state.channels(node.args[0])
    # Axis 0 and 1 of what has a batch are sample and channel, and so are those of a picture alone.
    kept = len(before) - _spatial_rank(node)
    bound = [axis for axis in range(len(before)) if axis >= kept or before[axis] != after[axis]]
    return state.pin(given, bound, node)


@rule(
    "max_pool2d_with_indices", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"
)
def spatial_with_indices(state: State, node: Node) -> Value:
    rank = len(state.shape(node.args[0]))
    channels = state.pin(
        state.channels(node.args[0]), range(rank - _spatial_rank(node), rank), node
    )
    return [channels, channels]


def _spatial_rank(node: Node) -> int:
    name = str(getattr(node.target, "__name__", node.target))
    return next(n for n in (1, 2, 3) if f"{n}d" in name)


@rule("matmul", "bmm", "mm")
def product(state: State, node: Node) -> Value:
    left, right = len(state.shape(node.args[0])), len(state.shape(node.args[1]))
    batch = "abcdefgh"
    first = batch[8 - max(left - 2, 0) :] + ("xy" if left > 1 else "y")
    second = batch[8 - max(right - 2, 0) :] + ("yz" if right > 1 else "y")
    shared = batch[8 - max(left - 2, right - 2, 0) :]
    made = shared + ("x" if left > 1 else "") + ("z" if right > 1 else "")
    return contract(state, node, (node.args[0], first), (node.args[1], second), made)


@rule("einsum")
def einsum(state: State, node: Node) -> Value:
    equation, operands = node.args[0], node.args[1]
    terms, _, made = str(equation).replace(" ", "").partition("->")
    names = terms.split(",")
    assert isinstance(operands, list | tuple)
    simple = made and "." not in terms and all(len(set(n)) == len(n) for n in names)
    if len(names) != 2 or not simple:
        return state.unknown(node)
    return contract(state, node, (operands[0], names[0]), (operands[1], names[1]), made)


def contract(
    state: State, node: Node, one: tuple[Any, str], other: tuple[Any, str], made: str
) -> Channels:
    """Labels of a product that sums over the letters missing in ``made``.

    What is summed over stays whole: of attention's queries and keys only whole heads can go.
    """
    operands = []
    for argument, letters in (one, other):
        shape = state.shape(argument)
        summed = [axis for axis, letter in enumerate(letters) if letter not in made]
        channels = state.pin(state.channels(argument), summed, node)
        sizes = tuple(shape[letters.index(x)] if x in letters else 1 for x in made)
        if channels is not None:
            kept = [letters.index(x) for x in made if x in letters]
            moved = np.transpose(channels, [*kept, *summed])
            placed = iter(moved.shape[: len(kept)])
            channels = moved.reshape([next(placed) if x in letters else 1 for x in made])
        operands.append((channels, sizes))
    return combine(state, node, operands[0], operands[1])


@rule("scaled_dot_product_attention")
def attention(state: State, node: Node) -> Value:
    """Queries, keys and values share their heads; several queries' heads may share a key's."""
    shapes = [state.shape(a) for a in node.args[:3]]
    query, key, value = (
        state.pin(state.channels(a), [len(s) - 1, len(s) - 2] if i < 2 else [len(s) - 2], node)
        for i, (a, s) in enumerate(zip(node.args[:3], shapes, strict=True))
    )
    heads = shapes[0][-3] if len(shapes[0]) > 2 else 1
    operands: list[tuple[Channels, tuple[int, ...]]] = []
    for channels, shape in zip((query, key, value), shapes, strict=True):
        sizes = shape
        if len(shape) > 2 and shape[-3] not in (1, heads):
            sizes = (*shape[:-3], heads, *shape[-2:])
            if channels is not None and channels.shape[-3] > 1:
                channels = np.repeat(channels, heads // shape[-3], axis=channels.ndim - 3)
        operands.append((channels, sizes))
    query, key, value = (channels for channels, _ in operands)
    scores = (*operands[0][1][:-1], shapes[1][-2])
    mixed = combine(state, node, (query, (*scores[:-1], 1)), (key, (*operands[1][1][:-2], 1, 1)))
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    if isinstance(mask, Node):
        mixed = combine(state, node, (mixed, scores), (state.channels(mask), state.shape(mask)))
        mixed = state.pin(mixed, range(len(scores) - 2, len(scores)), node)
    width = (*scores[:-1], 1)
    return combine(state, node, (mixed, width), (value, (*operands[2][1][:-2], 1, shapes[2][-1])))


def _int(node: Node, index: int, name: str, default: int) -> int:
    value = node.args[index] if len(node.args) > index else node.kwargs.get(name, default)
    assert isinstance(value, int)
    return value
