"""The jobs of channel pruning: find what can go, and make the smaller model."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from workbench.engine.algorithms.channel_choice import lowest
from workbench.engine.analysis.channel_sensitivity import taylor_sensitivity
from workbench.engine.errors import Cancelled, WrongState
from workbench.engine.events import Notice, Progress
from workbench.engine.export.float_onnx import to_onnx
from workbench.engine.export.onnx_file import save_onnx
from workbench.engine.files.prune_config import ChannelPrune, PruneConfig, format_prune_config
from workbench.engine.files.sidecar import Sidecar, write_sidecar
from workbench.engine.flows.prune import CHOSEN, REPORT, create_prune_retrain_model, prune_channels
from workbench.engine.flows.prune_layers import prune_layers
from workbench.engine.flows.prune_plan import PruneReport, group_count, norm_scores
from workbench.engine.graph.capture import Captured, capture
from workbench.engine.graph.channel_groups import ChannelGroup, channel_groups
from workbench.engine.graph.channel_map import channel_map
from workbench.engine.search.channel_flow import workable_groups
from workbench.engine.search.channel_greedy import greedy
from workbench.engine.search.channel_space import SearchSpace, layer_costs
from workbench.engine.search.channel_table import ChannelTable, channel_table
from workbench.studio.measure import OrtModel, latencies
from workbench.studio.project import write_whole
from workbench.studio.pruning_state import (
    PrunePlan,
    PruningState,
    plan_of,
    read_pruning,
    store_pruning,
)
from workbench.studio.shrinking import (
    STAGES,
    Step,
    files_of_step,
    finish,
    make_project,
    staged_project,
)
from workbench.studio.tasks import Run, ensure_open, evaluate_float
from workbench.studio.training_data import training_data

BATCHES, BATCH_SIZE = 32, 8
"""Training batches that ``taylor`` looks at, and samples of each."""

TARGETS = tuple(round(1.0 + 0.1 * i, 1) for i in range(31))
"""Ratios of bit-operations, original ÷ plan, that a search looks for plans of."""

RATIOS = tuple(round(0.05 * i, 2) for i in range(1, 19))
"""Ratios of channels that all layers are given together."""

MEASURED = (1.5, 2.0, 2.5, 3.0, 4.0)
"""Targets whose plans are run in ONNX Runtime."""


def prune_search(run: Run) -> None:
    """The job: sensitivities of all channels, and the plans that follow from them."""
    begun = time.perf_counter()
    run.report.stages(6)
    ensure_open(run.workspace, run.report)
    measure, limit = str(run.args["sensitivity"]), float(run.args["max_ratio"])
    aligned = bool(run.args["aligned"])
    run.report.stage("finding which channels belong together")
    captured = capture(run.source.model, run.source.example, dynamic=False, on_event=run.report)
    groups, blocked = _groups(captured, run)
    run.report.stage("measuring what each channel is worth")
    if measure == "taylor":
        values, loss, samples = _taylor(run, captured, groups)
    else:
        values = tuple(norm_scores(captured.module, group) for group in groups)
        loss, samples = "", 0
    run.report.stage("looking for plans")
    table = channel_table(captured, groups)
    plans = _searched(run, captured, groups, values, table, limit=limit, aligned=aligned)
    uniform = tuple(
        _uniform(table, ratio, aligned=aligned) for ratio in RATIOS if ratio <= limit + 1e-9
    )
    run.report.stage("measuring the speed")
    nothing = plan_of(table, (0,) * len(groups), kind="search", target=1.0)
    original, plans = _timed(run, captured, nothing, plans)
    state = PruningState(
        measure=measure,
        sensitivity=_by_layer(groups, values),
        original=original,
        plans=plans,
        uniform=uniform,
        blocked=blocked,
        coupled=_coupled(table),
        table=table,
        aligned=aligned,
        max_ratio=limit,
        loss=loss,
        samples=samples,
        batches=int(run.args.get("batches") or 0),
        seconds=time.perf_counter() - begun,
        job=run.job,
    )
    run.cancel.check()
    store_pruning(run.store, state)


def _groups(captured: Captured, run: Run) -> tuple[tuple[ChannelGroup, ...], dict[str, str]]:
    """Groups that can lose channels, and why layers are in none."""
    layers = prune_layers(captured)
    blocked = {name: layer.channel for name, layer in layers.items() if layer.channel}
    named = [name for name, layer in layers.items() if not layer.channel]
    found = channel_groups(channel_map(captured), named)
    groups, refused = workable_groups(captured, found.groups, cancel=run.cancel)
    blocked |= {name: found.reasons[name] for name in named if name in found.reasons}
    blocked |= refused
    if not groups:
        reasons = [f"{name}: {reason}" for name, reason in blocked.items()]
        raise WrongState(
            "no layer of this model can lose channels",
            where="model",
            hint="; ".join(reasons[:5]) or "It has no such layers.",
        )
    return groups, blocked


def _taylor(
    run: Run, captured: Captured, groups: Sequence[ChannelGroup]
) -> tuple[tuple[NDArray[np.float64], ...], str, int]:
    """(values by group, the loss in words, samples)."""
    source, live = run.source, run.workspace.live
    data = training_data(
        run.workspace.project, source.model, source.calibration,
        live=live.train if live else None, batch_size=BATCH_SIZE,
    )  # fmt: skip
    wanted = run.args.get("batches") or BATCHES
    _, target = data.first()
    loss, words = _loss(target)
    if target is None:
        run.report(Notice(f"The training data has no labels: channels are weighed by {words}."))
    batches = []
    for inputs, label in data.loader:
        batches.append((inputs, label))
        if len(batches) == wanted:
            break
    found = taylor_sensitivity(
        captured.module, groups, batches, loss,
        total=len(batches), on_event=run.report, cancel=run.cancel,
    )  # fmt: skip
    return found, words, sum(len(inputs[0]) for inputs, _ in batches)


def _loss(target: Tensor | None) -> tuple[Any, str]:
    if target is None:
        return _strength, "the mean square of the output"
    if target.is_floating_point():
        return nn.functional.mse_loss, "squared error to the targets"
    return nn.functional.cross_entropy, "cross-entropy with the labels"


def _strength(output: Any, _: Any) -> Tensor:
    leaves = [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor)]
    squares = [x.square().mean() for x in leaves if x.is_floating_point()]
    return torch.stack(squares).sum()


def _searched(
    run: Run,
    captured: Captured,
    groups: tuple[ChannelGroup, ...],
    values: Sequence[NDArray[np.float64]],
    table: ChannelTable,
    *,
    limit: float,
    aligned: bool,
) -> tuple[PrunePlan, ...]:
    """A plan for each target, until one cannot be met: each goes on from the one before."""
    space = SearchSpace(
        groups, layer_costs(captured), ascend_optimized=aligned, max_prune_ratio=limit
    )
    counts = [0] * len(groups)
    plans: list[PrunePlan] = []
    for done, target in enumerate(TARGETS):
        run.report(Progress("Looking for plans", done, len(TARGETS)))
        gone = greedy(space, values, target, cancel=run.cancel)
        counts = [count + len(units) for count, units in zip(counts, gone, strict=True)]
        # What the columns can say, which is one ratio a layer, is what counts.
        said = table.counts(table.ratios(counts))
        plans.append(plan_of(table, said, kind="search", target=target))
        if space.ratio < target:
            break
    return tuple(plans)


def _uniform(table: ChannelTable, ratio: float, *, aligned: bool) -> PrunePlan:
    ratios = {name: ratio for group in table.groups for name in group.producers}
    counts = table.counts(ratios, aligned=aligned)
    plan = plan_of(table, counts, kind="uniform", target=ratio)
    return replace(plan, ratios=ratios)


def _timed(
    run: Run, captured: Captured, original: PrunePlan, plans: tuple[PrunePlan, ...]
) -> tuple[PrunePlan, tuple[PrunePlan, ...]]:
    """The original and some of the plans with their milliseconds in ONNX Runtime."""
    wanted = [i for i, plan in enumerate(plans) if plan.target in MEASURED and plan.removed]
    try:
        found = _milliseconds(run, captured, [(i, plans[i]) for i in wanted])
    except (Cancelled, OSError):
        raise
    except (
        Exception
    ) as error:  # exporter and runtime raise many kinds; the plans stand all the same
        run.report(Notice(f"The speed could not be measured in ONNX Runtime: {error}"[:300]))
        return original, plans
    timed = [
        replace(plan, latency_ms=found[str(i)][0]) if str(i) in found else plan
        for i, plan in enumerate(plans)
    ]
    return replace(original, latency_ms=found["original"][0]), tuple(timed)


def _milliseconds(
    run: Run, captured: Captured, wanted: Sequence[tuple[int, PrunePlan]]
) -> dict[str, tuple[float, float]]:
    """Of the original and each plan, by its number as text."""
    source, threads = run.source, run.workspace.project.settings.threads
    with tempfile.TemporaryDirectory(dir=run.workspace.project.folder, prefix=".prune-") as folder:
        models = {"original": _in_onnx(run.workspace.capture(), Path(folder) / "original", threads)}
        for done, (i, plan) in enumerate(wanted):
            run.cancel.check()
            run.report(Progress("Making the models", done, len(wanted) + 1))
            settings = {n: ChannelPrune(r, False) for n, r in plan.ratios.items()}
            smaller = prune_channels(
                source.model, captured, PruneConfig(settings), cancel=run.cancel
            ).model.eval()
            graph = capture(smaller, source.example)
            models[str(i)] = _in_onnx(graph, Path(folder) / str(i), threads)
        return latencies(models, source.evaluation[0].inputs, cancel=run.cancel)


def _in_onnx(captured: Captured, path: Path, threads: int) -> OrtModel:
    file = path.with_suffix(".onnx")
    save_onnx(to_onnx(captured, None), str(file), suffix=".external")
    return OrtModel(file, threads=threads)


def _by_layer(
    groups: Sequence[ChannelGroup], values: Sequence[NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    """Layer -> the value of the unit that each of its channels is in; NaN for those in none."""
    found: dict[str, NDArray[np.float64]] = {}
    for group, value in zip(groups, values, strict=True):
        for member in group.producers:
            shown = np.append(value, np.nan)[member.units]
            known = found.get(member.module)
            found[member.module] = (
                shown if known is None else np.where(np.isnan(shown), known, shown)
            )
    return found


def _coupled(table: ChannelTable) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    for group in table.groups:
        for name in group.producers:
            others = dict.fromkeys(other for other in group.producers if other != name)
            found.setdefault(name, {}).update(others)
    return {name: tuple(others) for name, others in found.items() if others}


def prune(run: Run) -> None:
    """The job: remove channels as the columns say; the smaller model becomes a new project."""
    begun = time.perf_counter()
    run.report.stages(4 + STAGES)
    ensure_open(run.workspace, run.report)
    project, source = run.workspace.project, run.source
    _, columns = run.store.configuration()
    ratios = chosen_ratios([layer.name for layer in run.workspace.layers], columns)
    if not ratios:
        raise WrongState(
            "prune_enable is off for every layer",
            where="configuration",
            hint="Switch layers on, or take a plan of a search over.",
        )
    text = format_prune_config(ratios, ascend_optimized=bool(run.args["aligned"]))
    write_whole(project.prune_path, text)
    run.report.stage("evaluating the float model")
    metric_before = evaluate_float(run)
    run.report.stage("removing channels")
    with staged_project(str(run.args["folder"]), project.folder) as staging:
        config, record = files_of_step(run, staging, "prune", "cfg", "record.txt")
        write_whole(config, text)
        chosen = _choice(run, ratios)
        if chosen:
            write_sidecar(config, Sidecar(options={CHOSEN: chosen}))
        smaller = create_prune_retrain_model(
            source.model, source.example, str(config), str(record),
            on_event=run.report, cancel=run.cancel,
        )  # fmt: skip
        step = _step(getattr(smaller, REPORT), _asked(run, ratios, by_search=bool(chosen)))
        found = make_project(run, smaller, step, staging, metric_before=metric_before, begun=begun)
    finish(run, found)


def _asked(run: Run, ratios: Mapping[str, float], *, by_search: bool) -> dict[str, Any]:
    """What ``log.py`` needs: the ratios, and the search if it said which channels go."""
    asked: dict[str, Any] = {"ratios": dict(ratios), "aligned": bool(run.args["aligned"])}
    state = read_pruning(run.store, run.store.get("pruning")) if by_search else None
    if state is not None:
        asked["search"] = {
            "sensitivity": state.measure,
            "batches": state.batches or None,
            "max_ratio": state.max_ratio,
            "aligned": state.aligned,
        }
    return asked


def _step(report: PruneReport, asked: Mapping[str, Any]) -> Step:
    layers: dict[str, int] = {}
    for group in report.groups:
        for name, gone in group.removed.items():
            if gone:
                layers[name] = layers.get(name, 0) + len(gone)
    notes = report.blocked()
    if not layers:
        raise WrongState(
            "no channel would be removed",
            where="configuration",
            hint="; ".join(f"{name}: {reason}" for name, reason in list(notes.items())[:5]),
        )
    return Step("prune", layers, notes, asked)


def _choice(run: Run, ratios: Mapping[str, float]) -> dict[str, list[int]]:
    """The least sensitive channels of each group, by the last search; empty: the norms decide."""
    state = read_pruning(run.store, run.store.get("pruning"))
    wanted = str(run.args["channels"])
    # The scores of l2 are what BalancedL2Norm computes by itself.
    if state is None or wanted == "l2" or state.measure == "l2":
        return {}
    captured = capture(run.source.model, run.source.example, dynamic=False, on_event=run.report)
    settings = {n: ChannelPrune(r, bool(run.args["aligned"])) for n, r in ratios.items()}
    channels: dict[str, set[int]] = {}
    for group in channel_groups(channel_map(captured), ratios).groups:
        known = [m for m in group.producers if m.module in state.sensitivity]
        count = group_count(group, settings)
        if not count or not known:
            continue
        values = np.full(group.size, np.nan)
        for member in known:
            inside = member.units >= 0
            values[member.units[inside]] = state.sensitivity[member.module][inside]
        if np.isnan(values).any():
            continue
        units = lowest(values, group.cells, count)
        for member in group.producers:
            channels.setdefault(member.module, set()).update(member.channels(units))
    return {name: sorted(gone) for name, gone in channels.items()}


def chosen_ratios(names: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Layer -> ratio of the layers that are switched on."""
    rows = zip(names, columns["prune_enable"], columns["prune_ratio"], strict=True)
    return {name: float(ratio) for name, on, ratio in rows if on}
