"""Channel labels: integers that say which elements of a model's tensors live and die together.

Every output channel of every layer has a label of its own; operators that tie channels unite their
labels. A tensor's labels are an integer array with the tensor's rank, of size 1 along every axis on
which they do not vary. None: no element of the tensor can be removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
Channels = IntArray | None


@dataclass(frozen=True)
class Freeze:
    """Labels that must stay, and why in plain words."""

    labels: IntArray
    reason: str


@dataclass(frozen=True)
class Blocks:
    """A tensor that is cut along ``axis``: every block must lose the same share of its channels.

    ``ends``: the index after the last of each block.
    """

    labels: IntArray
    axis: int
    ends: tuple[int, ...]


class Labels:
    """Disjoint sets of labels, vectorised over arrays."""

    def __init__(self) -> None:
        self._parent: IntArray = np.empty(0, np.int64)
        self.frozen: list[Freeze] = []
        self.blocks: list[Blocks] = []
        self.boxes: list[IntArray] = []

    def fresh(self, *shape: int) -> IntArray:
        start = len(self._parent)
        count = int(np.prod(shape, dtype=np.int64))
        self._parent = np.concatenate([self._parent, np.arange(start, start + count)])
        return np.arange(start, start + count, dtype=np.int64).reshape(shape)

    def roots(self, labels: IntArray) -> IntArray:
        """The representative of every label's set."""
        found = self._parent[labels]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parent[labels] = found
        return found

    def unite(self, one: IntArray, other: IntArray) -> None:
        """Unite two arrays position by position; they are broadcast against each other."""
        one, other = np.broadcast_arrays(one, other)
        pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
        while True:
            first, second = self.roots(pairs[0]), self.roots(pairs[1])
            low, high = np.minimum(first, second), np.maximum(first, second)
            apart = low != high
            if not apart.any():
                return
            # A root with two new parents keeps the smaller one; the next round sees the other.
            np.minimum.at(self._parent, high[apart], low[apart])
            pairs = pairs[:, apart]

    def unite_along(self, labels: IntArray, axes: Iterable[int]) -> IntArray:
        """Unite what differs only along ``axes``; the result has size 1 there."""
        for axis in axes:
            if labels.shape[axis] > 1:
                first = np.take(labels, [0], axis=axis)
                self.unite(labels, first)
                labels = first
        return labels

    def freeze(self, channels: Channels, reason: str) -> None:
        if channels is not None:
            self.frozen.append(Freeze(np.unique(channels), reason))

    def settle(self, labels: IntArray, reason: str) -> Channels:
        """The array with size 1 along axes on which the sets do not vary.

        When they vary nowhere the tensor is one unit: it is frozen and None is returned.
        """
        roots = self.roots(labels)
        for axis, size in enumerate(roots.shape):
            if size > 1 and bool((roots == np.take(roots, [0], axis=axis)).all()):
                roots = np.take(roots, [0], axis=axis)
        if roots.size <= 1:
            self.freeze(labels, reason)
            return None
        if sum(size > 1 for size in roots.shape) > 1:
            self.boxes.append(roots)
        return roots

    def pin(self, channels: Channels, axes: Iterable[int], reason: str) -> Channels:
        """Forbid removing along ``axes``: unite along them, freeze what varies nowhere else."""
        if channels is None:
            return None
        return self.settle(self.unite_along(channels, axes), reason)

    def square(self) -> None:
        """Unite labels until removing any set of them leaves every tensor rectangular.

        Of the axes on which a tensor's labels vary, the one with the most units stays, of
        equal ones the last: a number of groups is more often written down than their size.
        """
        while True:
            changed = False
            for box in self.boxes:
                roots = self.roots(box)
                varying = [a for a in range(roots.ndim) if _varies(roots, a)]
                if len(varying) < 2:
                    continue
                counts = [len(np.unique(roots[_line(roots.ndim, axis)])) for axis in varying]
                keep = max(zip(counts, varying, strict=True))[1]
                self.unite_along(roots, [axis for axis in varying if axis != keep])
                changed = True
            if not changed:
                return


def varying_axes(channels: Channels) -> tuple[int, ...]:
    """The axes on which labels vary."""
    return () if channels is None else tuple(a for a, size in enumerate(channels.shape) if size > 1)


def reshape_labels(
    channels: Channels, before: Sequence[int], after: Sequence[int]
) -> tuple[Channels, bool]:
    """Labels of a tensor after a row-major reshape, and whether a labelled axis was cut or joined.

    Axes are matched in groups of equal size, so that batch and positions keep their size of 1.
    """
    if channels is None or 0 in before:
        return None, False
    labels = channels
    i = j = 0
    shape: list[int] = []
    changed = False
    source: list[int] = []
    while i < len(before) or j < len(after):
        left, right = [], []
        size_left = size_right = 1
        if i < len(before):
            left.append(i)
            size_left = before[i]
            i += 1
        if j < len(after):
            right.append(j)
            size_right = after[j]
            j += 1
        while size_left != size_right:
            if size_left < size_right:
                left.append(i)
                size_left *= before[i]
                i += 1
            else:
                right.append(j)
                size_right *= after[j]
                j += 1
        if all(labels.shape[a] == 1 for a in left):
            shape += [1] * len(right)
            source += [1] * len(left)
        else:
            shape += [after[a] for a in right]
            source += [before[a] for a in left]
            wide = [a for a in left if before[a] != 1], [a for a in right if after[a] != 1]
            changed |= len(wide[0]) != 1 or len(wide[1]) != 1
    return np.broadcast_to(labels, source).reshape(shape), changed


def _varies(array: IntArray, axis: int) -> bool:
    return not bool((array == np.take(array, [0], axis=axis)).all())


def _line(rank: int, axis: int) -> tuple[slice | int, ...]:
    return tuple(slice(None) if a == axis else 0 for a in range(rank))
