"""Does a model without some channels compute what the model with those channels silenced does?

The silenced model has zeros where consumers read a removed channel, so its outputs must be those of
the smaller one (specification chapter 40 section 9.4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from workbench.engine.events import CancelToken, check
from workbench.engine.flows.channel_surgery import Removal, apply_cuts, cuts_of
from workbench.engine.graph.capture import Captured
from workbench.engine.graph.copying import copy_model

_STATISTICS = frozenset({"layer_norm", "rms_norm", "group_norm"})
"""Operators whose statistics change with the channels that they see."""

_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class NewSize:
    """An attribute of a module (or one entry of it) that holds a size that has changed."""

    module: str
    attribute: str
    old: int
    new: int


@dataclass(frozen=True)
class Accepted:
    """Removals that the model runs with, what its attributes become, and what was refused why."""

    removals: tuple[Removal, ...]
    sizes: tuple[NewSize, ...]
    refused: tuple[tuple[Removal, str], ...]


def silenced(module: nn.Module, removals: Sequence[Removal]) -> nn.Module:
    """A copy of a dense model whose consumers read zeros in place of the removed channels."""
    model = copy_model(module)
    modules = dict(model.named_modules(remove_duplicate=False))
    for removal in removals:
        for member in removal.group.members:
            if member.role != "consumer":
                continue
            keep = torch.from_numpy(~np.isin(member.units, list(removal.units)))
            for path, name in member.owners:
                weight = getattr(modules[path], name)
                value = _silence(weight, member.axis, member.groups, keep.to(weight.device))
                setattr(modules[path], name, nn.Parameter(value, weight.requires_grad))
    return model


def _silence(weight: Tensor, axis: int, groups: int, keep: Tensor) -> Tensor:
    with torch.no_grad():
        factor = keep.to(weight.dtype)
        if axis == 0 or groups == 1:
            return weight * factor.reshape([-1 if a == axis else 1 for a in range(weight.dim())])
        parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return (parts * factor.reshape(groups, 1, -1, 1)).reshape(weight.shape)


def without(
    module: nn.Module, removals: Sequence[Removal], sizes: Sequence[NewSize] = ()
) -> nn.Module:
    """A copy of ``module`` that lacks the removed channels."""
    model = copy_model(module)
    apply_cuts(model, cuts_of(removals))
    set_sizes(model, sizes)
    return model


def set_sizes(model: nn.Module, sizes: Sequence[NewSize]) -> None:
    """Give modules the sizes that their code holds as numbers, in place."""
    modules = dict(model.named_modules())
    for size in sizes:
        owner = modules[size.module]
        value = getattr(owner, size.attribute)
        if isinstance(value, tuple | list):
            changed = type(value)(size.new if item == size.old else item for item in value)
            setattr(owner, size.attribute, changed)
        else:
            setattr(owner, size.attribute, size.new)


class RemovalCheck:
    """Tries removals on copies of a captured model and keeps those that it runs right with."""

    def __init__(self, captured: Captured, *, cancel: CancelToken | None = None) -> None:
        self._captured = captured
        self._cancel = cancel
        self._known: dict[tuple[int, ...], tuple[tuple[NewSize, ...] | None, str]] = {}

    def accept(self, removals: Sequence[Removal]) -> Accepted:
        """The largest part of ``removals`` that the model can lose, found by halving."""
        wanted = [removal for removal in removals if removal.units]
        untouched = tuple(removal for removal in removals if not removal.units)
        plain = [r for r in wanted if not _changes_statistics(r)]
        refused: list[tuple[Removal, str]] = []
        kept = self._halve([], plain, refused)
        kept = self._halve(kept, [r for r in wanted if _changes_statistics(r)], refused)
        sizes, _ = self._works(kept)
        order = {id(removal): position for position, removal in enumerate(removals)}
        found = sorted([*kept, *untouched], key=lambda removal: order[id(removal)])
        return Accepted(tuple(found), sizes or (), tuple(refused))

    def _halve(
        self, base: list[Removal], more: list[Removal], refused: list[tuple[Removal, str]]
    ) -> list[Removal]:
        """``base`` and what of ``more`` works with it."""
        if not more:
            return base
        sizes, problem = self._works([*base, *more])
        if sizes is not None:
            return [*base, *more]
        if len(more) == 1:
            refused.append((more[0], problem))
            return base
        middle = len(more) // 2
        return self._halve(self._halve(base, more[:middle], refused), more[middle:], refused)

    def _works(self, removals: list[Removal]) -> tuple[tuple[NewSize, ...] | None, str]:
        """The attributes with which the model runs right without ``removals``, or the problem."""
        if not removals:
            return (), ""
        key = tuple(id(removal) for removal in removals)
        if key not in self._known:
            self._known[key] = self._try(removals)
        return self._known[key]

    def _try(self, removals: list[Removal]) -> tuple[tuple[NewSize, ...] | None, str]:
        module = self._captured.module
        exact = [removal for removal in removals if not _changes_statistics(removal)]
        is_exact = len(exact) == len(removals)
        expected = self._run(silenced(module, removals) if is_exact else module)
        # The exact removals say better what they need than the shapes of all outputs do.
        known = () if is_exact else self._works(exact)[0] or ()
        settled = () if is_exact else size_candidates(module, exact)
        fresh = tuple(c for c in size_candidates(module, removals) if c not in settled)
        problem = ""
        for chosen in _choices(fresh):
            sizes = (*known, *chosen)
            check(self._cancel)
            try:
                made = self._run(without(module, removals, sizes))
            except Exception as error:
                problem = problem or _first_line(error) + _SIZE_IN_CODE
                continue
            if _agree(made, expected, exact=is_exact):
                return sizes, ""
            problem = problem or "the smaller model computes something else"
        return None, problem

    def _run(self, module: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            out = module(*self._captured.args, **self._captured.kwargs)
        return [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]


_SIZE_IN_CODE = (
    " (its code may compute a size from another, as C // heads does: kept as an attribute, "
    "self.head_dim = C // heads, it can follow)"
)


def size_candidates(module: nn.Module, removals: Sequence[Removal]) -> tuple[NewSize, ...]:
    """Attributes of whole numbers that may be sizes which the removals change."""
    modules = dict(module.named_modules())
    lost: dict[tuple[int, str, int], int] = {}
    for removal in removals:
        for size in removal.group.sizes:
            key = (size.number, size.scope, len(size.units))
            gone = int(np.isin(size.units, list(removal.units)).sum())
            lost[key] = lost.get(key, 0) + gone
    found: dict[tuple[str, str, int], set[int]] = {}
    for (_, scope, old), gone in lost.items():
        for attribute, value in vars(modules[scope]).items() if gone else ():
            if _holds(value, old):
                found.setdefault((scope, attribute, old), set()).add(old - gone)
    return tuple(
        NewSize(scope, attribute, old, new.pop())
        for (scope, attribute, old), new in found.items()
        if len(new) == 1
    )


def _holds(value: object, size: int) -> bool:
    values = value if type(value) in (tuple, list) else (value,)
    return any(type(item) is int and item == size for item in values)  # type: ignore[attr-defined]


def _choices(candidates: tuple[NewSize, ...]) -> Iterator[tuple[NewSize, ...]]:
    """Attributes to change, by name: all, then fewer and fewer while there are not many."""
    names = sorted({size.attribute for size in candidates})
    yield candidates
    for count in range(len(names) - 1, -1, -1) if len(names) <= 4 else (1, 0):
        for chosen in combinations(names, count):
            yield tuple(size for size in candidates if size.attribute in chosen)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _changes_statistics(removal: Removal) -> bool:
    return any(member.operator in _STATISTICS for member in removal.group.members)


def _agree(made: list[Tensor], expected: list[Tensor], *, exact: bool) -> bool:
    if [t.shape for t in made] != [t.shape for t in expected]:
        return False
    return not exact or all(_close(a, b) for a, b in zip(made, expected, strict=True))


def _close(made: Tensor, expected: Tensor) -> bool:
    if not expected.is_floating_point():
        return bool((made == expected).all())
    tolerance = _TOLERANCE.get(expected.dtype, 1e-3)
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    return torch.allclose(made, expected, rtol=0.0, atol=tolerance * scale + 1e-6, equal_nan=True)
