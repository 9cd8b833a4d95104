"""Which chains of modules are trained together.

Source: specification chapter 50 section 6, D6, D7 and D8.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from workbench.engine.files.distill_rules import group_types, supported
from workbench.engine.files.problems import Problem, raise_problems
from workbench.engine.graph.capture import Captured
from workbench.engine.graph.steps import StepGraph, find_steps

_NORMS = ("BatchNorm2d", "SyncBatchNorm")
_ACTIVATIONS = ("ReLU", "LeakyReLU", "Sigmoid", "Tanh", "Softmax")
_MORE_ACTIVATIONS = ("ReLU6", "GELU", "SiLU", "Hardswish", "Hardsigmoid")
_MORE_NORMS = ("LayerNorm",)
_NO_STEP = ("Dropout", "Identity")


@dataclass(frozen=True)
class Groups:
    """``chains``: module names of every group, in execution order; ``warnings`` in plain words."""

    chains: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...] = ()


def find_groups(
    captured: Captured,
    *,
    group_size: int = 1,
    given: Sequence[tuple[str, str]] = (),
    extended_types: bool = False,
    source: str = "",
) -> Groups:
    """The groups of a model: those ``given`` by their ends, then chains of ``group_size`` units.

    A unit is a supported layer with the batch norm and the activation that alone read it. A given
    group wins: the unit before it is cut where it begins. Raises one ``ConfigError``
    (``ValueError``) with every problem of the given groups, or when no group results.
    """
    return _Finder(captured, extended_types).find(given, group_size, source)


def chain_problems(
    captured: Captured, chains: Iterable[Sequence[str]], *, extended_types: bool = False
) -> list[Problem]:
    """The groups whose members do not read one another in the captured graph (D16)."""
    graph = find_steps(captured, group_types(extended=extended_types))
    kinds = _kinds(captured.module)
    problems = []
    for chain in chains:
        # Modules that do nothing in eval mode leave no trace in the graph.
        members = [name for name in chain if kinds.get(name) not in _NO_STEP]
        if members and not graph.is_chain(members):
            allowed = "modules that read one another, in this order"
            problems.append(Problem("", "distill_group", f"{list(chain)}, not a chain", allowed))
    return problems


def _kinds(module: nn.Module) -> dict[str, str]:
    return {path: type(child).__name__ for path, child in module.named_modules()}


class _Finder:
    def __init__(self, captured: Captured, extended_types: bool) -> None:
        self._allowed = group_types(extended=extended_types)
        self._graph: StepGraph = find_steps(captured, self._allowed)
        self._kinds = _kinds(captured.module)
        self._anchors = {name for name, layer in captured.layers.items() if supported(layer)}
        more = extended_types
        self._norms = _NORMS + (_MORE_NORMS if more else ())
        self._activations = _ACTIVATIONS + (_MORE_ACTIVATIONS if more else ())
        self._problems: list[Problem] = []

    def find(self, given: Sequence[tuple[str, str]], group_size: int, source: str) -> Groups:
        routes = [route for ends in given if (route := self._route(*ends))]
        taken: set[int] = set()
        for route in routes:
            shared = {self._name(p) for p in taken & set(route) if not self._reused(p)}
            if shared:
                ends = f"{self._name(route[0])!r} to {self._name(route[-1])!r}"
                self._add(ends, f"with {', '.join(sorted(shared))} in another group, too")
            taken |= set(route)
        chains = [*routes, *self._cascade(self._units(taken), group_size)]
        if not chains and not self._problems:
            self._problems.append(
                Problem("", "model", "without a distill group", "a supported layer in a chain")
            )
        raise_problems(self._problems, source=source)
        chains.sort()
        named = tuple(tuple(self._name(p) for p in chain) for chain in chains)
        return Groups(named, tuple(self._separated(chains)))

    def _route(self, start: str, end: str) -> tuple[int, ...]:
        """The one route between two modules; () after noting why there is none."""
        ends = f"{start!r} to {end!r}"
        calls = self._graph.at.get(start, ())
        if len(calls) > 1:
            self._add(ends, f"{start!r} called {len(calls)} times", "a start that is called once")
            return ()
        count, route = self._graph.routes(calls[0], end) if calls else (0, ())
        if count != 1:
            self._add(ends, f"{count} routes", "ends with exactly one route between them")
            return ()
        strangers = [p for p in route if self._kinds.get(self._name(p)) not in self._allowed]
        if strangers:
            allowed = f"only modules of type {', '.join(self._allowed)} on the route"
            self._add(ends, "an operator of the model's own code on the route", allowed)
            return ()
        for position in route:
            name = self._name(position)
            if self._reused(position) and self._kinds[name] in self._norms:
                self._add(ends, f"{name!r} called more than once", "a batch norm called once")
                return ()
        return route

    def _units(self, taken: Collection[int]) -> dict[int, tuple[int, ...]]:
        """First step -> all steps of the unit, for every supported layer in no given group."""
        units: dict[int, tuple[int, ...]] = {}
        for position, step in enumerate(self._graph.steps):
            if step.name not in self._anchors or position in taken:
                continue
            unit = [position]
            wanted = [self._norms, self._activations]
            while wanted:
                follower = self._graph.only_consumer(unit[-1])
                if follower is None or follower in taken:
                    break
                kind = self._kinds.get(self._name(follower), "")
                while wanted and kind not in wanted[0]:
                    wanted.pop(0)
                # A normalisation that runs more than once ends the unit; an activation may.
                if not wanted or (kind in self._norms and self._reused(follower)):
                    break
                unit.append(follower)
                wanted.pop(0)
            units[position] = tuple(unit)
        return units

    def _cascade(self, units: dict[int, tuple[int, ...]], group_size: int) -> list[tuple[int, ...]]:
        chains = []
        started: set[int] = set()
        for position in units:
            if position in started:
                continue
            chain: list[int] = []
            unit: int | None = position
            for _ in range(group_size):
                if unit is None or unit not in units:
                    break
                started.add(unit)
                chain += units[unit]
                unit = self._graph.only_consumer(chain[-1])
            chains.append(tuple(chain))
        return chains

    def _separated(self, chains: Sequence[tuple[int, ...]]) -> Iterable[str]:
        """Batch norms that are not in the group of the layer they read, though they could be."""
        of = {position: number for number, chain in enumerate(chains) for position in chain}
        for position in of:
            follower = self._graph.only_consumer(position)
            if self._name(position) not in self._anchors or follower is None:
                continue
            norm = self._kinds.get(self._name(follower)) in _NORMS and not self._reused(follower)
            if norm and of.get(follower) != of[position]:
                yield (
                    f"{self._name(follower)} is not in the group of {self._name(position)}, whose "
                    "output it normalises: the group is trained without it"
                )

    def _name(self, position: int) -> str:
        return self._graph.steps[position].name

    def _reused(self, position: int) -> bool:
        return len(self._graph.at.get(self._name(position), ())) > 1

    def _add(self, ends: str, value: str, allowed: str = "each module in one group only") -> None:
        self._problems.append(Problem("", f"distill_group {ends}", value, allowed))
