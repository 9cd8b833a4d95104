"""Where the batch lies in a model's inputs: axis 0, or axis 1 for sequences and recurrent states.

torch's recurrent layers take their state as (layers, batch, hidden) always, and their sequence as
(length, batch, features) unless ``batch_first`` is set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from workbench.engine.graph.inputs import batch_of, batched


@dataclass(frozen=True)
class BatchLayout:
    """``axis(leaf)``: the batch axis of a leaf of the inputs, None when it has none."""

    batch: int
    axis: Callable[[object], int | None]


def batch_layouts(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[BatchLayout]:
    """The layouts to try, the likeliest first; the last one is axis 0 everywhere.

    Empty when no input has a dimension.
    """
    batch = batch_of(args, kwargs)
    if not batch:
        return []
    first = BatchLayout(batch, lambda leaf: 0 if batched(leaf, batch) else None)
    recurrent = [m for m in module.modules() if isinstance(m, nn.RNNBase)]
    if not recurrent:
        return [first]
    states = {
        (m.num_layers * (2 if m.bidirectional else 1), size)
        for m in recurrent
        for size in (m.hidden_size, m.proj_size)
    }

    def is_state(leaf: object) -> bool:
        return (
            isinstance(leaf, Tensor)
            and leaf.dim() == 3
            and (leaf.shape[0], leaf.shape[2]) in states
        )

    layouts = []
    if any(m.batch_first for m in recurrent):
        layouts.append(
            BatchLayout(
                batch,
                lambda leaf: (
                    1
                    if is_state(leaf) and _size(leaf, 1) == batch
                    else 0
                    if batched(leaf, batch)
                    else None
                ),
            )
        )
    if not all(m.batch_first for m in recurrent):
        leaves = pytree.tree_leaves((args, kwargs))
        second = next((_size(leaf, 1) for leaf in leaves if _size(leaf, 1)), 0)
        if second:
            layouts.append(
                BatchLayout(second, lambda leaf: 1 if _size(leaf, 1) == second else None)
            )
    return [*layouts, first]


def repeat_to_two(
    layout: BatchLayout, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Repeat inputs of batch 1 to batch 2: a size of 1 cannot be captured as dynamic."""

    def repeat(leaf: Any) -> Any:
        axis = layout.axis(leaf)
        return leaf if axis is None else torch.cat([leaf.detach()] * 2, dim=axis)

    doubled: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(repeat, (args, kwargs))
    return doubled


def _size(leaf: object, axis: int) -> int:
    return int(leaf.shape[axis]) if isinstance(leaf, Tensor) and leaf.dim() > axis else 0
