"""Pruning and decomposition as a user of a session asks for them; part of a session."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from workbench.engine.errors import WrongState, WrongType, WrongValue
from workbench.studio.edits import CellEdit
from workbench.studio.project import Project, is_project, safe_name
from workbench.studio.pruning_state import MEASURES, PrunePlan, PruningState

MAX_RATIO = 0.8
"""Of the channels of a layer, at most: what a search takes without its user's word."""


class Prunable(Protocol):
    """Of a session, what pruning needs."""

    layers: pd.DataFrame
    pruning: PruningState | None
    project: Project
    revision: int
    notice: str

    def start(self, kind: str, *, wait: bool = False, **args: Any) -> None: ...
    def poll(self) -> bool: ...
    def row(self, name: str) -> int: ...
    def prune_ratios(self) -> dict[str, float]: ...
    def _commit(self, cells: Sequence[CellEdit], label: str) -> None: ...


class PruningControl:
    """Search which channels can go, choose how many, and make the smaller project."""

    def search_pruning(
        self: Prunable,
        *,
        sensitivity: str = "taylor",
        batches: int | None = None,
        max_ratio: float = MAX_RATIO,
        aligned: bool = False,
        wait: bool = True,
    ) -> None:
        """Find which channels matter least and what losing them saves; ``pruning`` has it all.

        ``sensitivity``: 'taylor', the loss that each channel is worth, by its weights times their
        gradients over ``batches`` batches of 8 training samples (None: 32); 'l2', the norms of the
        filters as BalancedL2Norm compares them, without data. ``max_ratio``: no layer loses more of
        its channels. ``aligned``: keep multiples of 16 channels, which Ascend devices compute
        whole. Nothing is removed: take a plan over with ``use_plan``, then call ``prune``.
        """
        if sensitivity not in MEASURES:
            raise WrongValue(
                f"sensitivity is {sensitivity!r}",
                where="search_pruning",
                hint=f"Allowed: {', '.join(MEASURES)}.",
            )
        if batches is not None and (isinstance(batches, bool) or not isinstance(batches, int)):
            raise WrongType(f"batches is {batches!r}; it must be a whole number", where="batches")
        if batches is not None and batches < 1:
            raise WrongValue(f"batches is {batches}; allowed: 1 or more", where="batches")
        if not 0 < max_ratio < 1:
            raise WrongValue(
                f"max_ratio is {max_ratio!r}",
                where="search_pruning",
                hint="Allowed: above 0 and below 1.",
            )
        self.start(
            "prune_search",
            wait=wait,
            sensitivity=sensitivity,
            batches=batches,
            max_ratio=float(max_ratio),
            aligned=bool(aligned),
        )

    def use_plan(self: Prunable, plan: PrunePlan | float) -> PrunePlan:
        """Write a plan into ``prune_enable`` and ``prune_ratio``, as one edit to be undone.

        ``plan``: of ``pruning``, or a target that ``pruning.plan_for`` looks up; where that is out
        of reach, the plan that comes nearest is used, and ``notice`` says so. Returns the plan.
        """
        if not isinstance(plan, PrunePlan):
            if self.pruning is None:
                raise WrongState(
                    "there is no plan yet", where="use_plan", hint="Call search_pruning() first."
                )
            target = check_target(plan)
            plan = self.pruning.plan_for(target)
            if plan.reached < target:
                self.notice = (
                    f"no plan reaches {target:g}×; the best one, {plan.reached:.3g}×, is used"
                )
        for name in plan.ratios:
            self.row(name)
        table = self.layers
        names = [str(name) for name in table["name"]]
        wanted = [name in plan.ratios for name in names]
        ratios = [plan.ratios.get(name, float(table["prune_ratio"].iloc[i]))
                  for i, name in enumerate(names)]  # fmt: skip
        cells = []
        for column, values in (("prune_enable", wanted), ("prune_ratio", ratios)):
            now = table[column].tolist()
            rows = [i for i, value in enumerate(values) if value != now[i]]
            if rows:
                cells.append(
                    CellEdit(
                        column,
                        tuple(rows),
                        tuple(now[i] for i in rows),
                        tuple(values[i] for i in rows),
                    )
                )
        if cells:
            what = f"{plan.target:g}" if plan.kind == "uniform" else f"{plan.reached:.3g}×"
            self._commit(cells, f"prune {len(plan.ratios)} layers: {what}")
        return plan

    def prune_ratios(self: Prunable) -> dict[str, float]:
        """Layer -> ratio, of the layers whose ``prune_enable`` is on."""
        table = self.layers
        if table.empty:
            return {}
        chosen = table[table["prune_enable"]]
        return dict(zip(chosen["name"], chosen["prune_ratio"].tolist(), strict=True))

    def prune_obstacle(self: Prunable, name: str) -> str:
        """Why the graph keeps all channels of a layer, as the last search found; empty if not."""
        return "" if self.pruning is None else self.pruning.blocked.get(name, "")

    def prune_effect(self: Prunable) -> PrunePlan | None:
        """What ``prune`` would leave, by the table of the last search; None before one."""
        if self.pruning is None:
            return None
        return self.pruning.with_ratios(self.prune_ratios())

    def prune_notes(self: Prunable) -> dict[str, str]:
        """Layers that are switched on and would lose nothing all the same: why."""
        return {} if self.pruning is None else self.pruning.notes(self.prune_ratios())

    def prune(
        self: Prunable,
        *,
        project: str | os.PathLike[str] | None = None,
        channels: str = "auto",
        aligned: bool | None = None,
        wait: bool = True,
    ) -> None:
        """Remove channels as the columns say, and keep the smaller model as a new project.

        ``project``: its name, beside this one, or a path; None: ``<name>-pruned``, with a number
        when that is taken. ``channels`` says which go: 'taylor' or 'l2' by the sensitivities of the
        last search, 'auto' the same if there is one, else BalancedL2Norm. ``aligned``: keep
        multiples of 16 channels; None: as in the last search. See ``shrunk`` for what came of it.
        """
        if not self.prune_ratios():
            raise WrongState(
                "prune_enable is off for every layer",
                where="prune",
                hint="Switch layers on, or take a plan over: search_pruning(), use_plan(2.0).",
            )
        known = None if self.pruning is None else self.pruning.measure
        if channels not in ("auto", "l2") and channels != known:
            raise WrongValue(
                f"channels is {channels!r}, the last search is {known or 'none'}",
                where="prune",
                hint="Allowed: auto, l2, or the sensitivity that search_pruning() measured.",
            )
        if aligned is None:
            aligned = self.pruning is not None and self.pruning.aligned
        folder = new_folder(self.project, project, "pruned")
        self.start("prune", wait=wait, folder=folder, channels=channels, aligned=bool(aligned))

    def decompose(
        self: Prunable,
        *,
        dry_run: bool = False,
        project: str | os.PathLike[str] | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        rank_rule: str | int | Mapping[str, int] = "compat",
        energy: float = 0.9,
        max_error: float | None = None,
        min_gain: float = 0.0,
        method: str = "gram",
        balance: bool = False,
        wait: bool = True,
    ) -> None:
        """Replace large convolutions by pairs of smaller ones, and keep that as a new project.

        With ``dry_run`` nothing is made: ``decomposition`` says what would become of each layer.
        ``project``: as for ``prune``; None: ``<name>-decomposed``. The other arguments are those of
        ``workbench.engine.auto_decomposition``.
        """
        from workbench.engine.flows.decompose import check_options

        options = {
            "include": None if include is None else list(include),
            "exclude": None if exclude is None else list(exclude),
            "rank_rule": dict(rank_rule) if isinstance(rank_rule, Mapping) else rank_rule,
            "energy": energy,
            "max_error": max_error,
            "min_gain": min_gain,
            "method": method,
            "balance": balance,
        }
        check_options("decompose", include, exclude, rank_rule, energy, max_error, min_gain, method)
        folder = "" if dry_run else new_folder(self.project, project, "decomposed")
        self.start("decompose", wait=wait, dry_run=bool(dry_run), folder=folder, options=options)


def check_target(target: float) -> float:
    """How many times fewer bit-operations: ``WrongValue`` for what asks for no plan at all."""
    if not 1 < float(target) < math.inf:
        raise WrongValue(
            f"target is {target!r}",
            where="target",
            hint="Allowed: above 1; 2 asks for half of the bit-operations.",
        )
    return float(target)


def new_folder(project: Project, wanted: str | os.PathLike[str] | None, ending: str) -> str:
    """Where a new project goes; ``WrongValue`` when there is one already."""
    if wanted is None:
        base = safe_name(f"{project.name}-{ending}")
        names = (base, *(f"{base}-{number}" for number in range(2, 1000)))
        free = (project.folder.parent / name for name in names)
        return str(next(path for path in free if not path.exists()))
    text = os.fspath(wanted)
    if os.sep in text or (os.altsep and os.altsep in text):
        path = Path(text).expanduser().absolute()
        path = path.parent / safe_name(path.name)
    else:
        path = project.folder.parent / safe_name(text)
    if is_project(path) or path.exists():
        raise WrongValue(
            f"there is something named {path.name} already",
            where=str(path),
            hint="Choose another name for the new project.",
        )
    return str(path)
