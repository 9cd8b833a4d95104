"""Commands that make a model smaller: find which channels can go, remove them, decompose layers."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from workbench.cli.command import Command, Option, Result

if TYPE_CHECKING:
    from workbench.studio.pruning_state import PrunePlan, Shrunk
    from workbench.studio.session import Session

LISTED = 12
"""Layers that a person is told of one by one."""


def _search(session: Session, given: argparse.Namespace) -> None:
    from workbench.studio.pruning_control import check_target

    check_target(given.target)
    session.search_pruning(
        sensitivity=given.sensitivity,
        batches=given.batches,
        max_ratio=given.max_ratio,
        aligned=given.aligned,
    )
    if given.apply:
        session.use_plan(given.target)
        session.flush()


def _searched(session: Session, given: argparse.Namespace) -> Result:
    found = session.pruning
    assert found is not None
    plan: PrunePlan = found.plan_for(given.target)
    return {
        "ok": plan.reached >= given.target,
        "target": given.target,
        "reached": plan.reached,
        "best": found.plans[-1].reached,
        "sensitivity": found.measure,
        "parameters": [found.original.parameters, plan.parameters],
        "bytes": [found.original.bytes, plan.bytes],
        "macs": [found.original.macs, plan.macs],
        "latency_ms": [found.original.latency_ms, plan.latency_ms],
        "ratios": dict(plan.ratios),
        "removed": dict(plan.removed),
        "blocked": dict(found.blocked),
        "config": str(session.project.prune_path) if given.apply else None,
    }


def _searched_words(found: Result) -> str:
    from workbench.charts import formats

    verdict = "met" if found["ok"] else f"missed, the best is {found['best']:.3g}×"
    lines = [
        found["project"],
        f"  target {found['target']:g}× fewer bit-operations {verdict}; "
        f"the plan reaches {found['reached']:.3g}×",
        *_figures(found),
        f"  layers that lose channels: {len(found['removed'])}",
    ]
    lines += _listed(found["removed"], "channels")
    if found["blocked"]:
        lines.append(f"  layers that cannot lose any: {len(found['blocked'])}")
    if found["config"]:
        kept = "" if found["ok"] else "; this plan was taken over all the same"
        lines.append(f"  pruning configuration: {found['config']}{kept}")
    else:
        lines.append(f"  --apply takes it over; {formats.count(found['parameters'][0])} parameters "
                     "are untouched")  # fmt: skip
    return "\n".join(lines)


def _prune(session: Session, given: argparse.Namespace) -> None:
    if given.ratio is not None:
        session.set_flag(list(session.layers["name"]), True, "prune_enable")
        chosen = session.layers[session.layers["prune_enable"]]
        session.set_option(list(chosen["name"]), "prune_ratio", given.ratio)
    session.prune(project=given.name, aligned=given.aligned or None)


def _decompose(session: Session, given: argparse.Namespace) -> None:
    rule = given.rank_rule
    session.decompose(
        dry_run=given.dry_run,
        project=None if given.dry_run else given.name,
        rank_rule=int(rule) if rule.isdigit() else rule,
        energy=given.energy,
        max_error=given.max_error,
        min_gain=given.min_gain,
    )


def _shrunk(session: Session, _: argparse.Namespace) -> Result:
    made: Shrunk | None = session.shrunk
    assert made is not None
    return {
        "ok": True,
        "kind": made.kind,
        "made": made.folder,
        "metric": made.metric_name,
        "float": list(made.metric),
        "parameters": list(made.parameters),
        "bytes": list(made.bytes),
        "macs": list(made.macs),
        "latency_ms": list(made.latency_ms),
        "layers": dict(made.layers),
        "notes": dict(made.notes),
        "files": list(made.onnx),
    }


def _decomposed(session: Session, given: argparse.Namespace) -> Result:
    if not given.dry_run:
        return _shrunk(session, given)
    plan = session.decomposition
    assert plan is not None
    return {
        "ok": True,
        "kind": "decompose",
        "made": None,
        "parameters": [plan.parameters, plan.parameters_after],
        "macs": [plan.macs, plan.macs_after],
        "layers": {row.name: int(row.rank) for row in plan.layers if not row.skipped},
        "errors": {row.name: row.error for row in plan.layers if not row.skipped},
        "notes": {row.name: row.skipped for row in plan.layers if row.skipped},
    }


def _shrunk_words(found: Result) -> str:
    from workbench.charts import formats

    lines = [found["project"]]
    if "float" in found:
        name = found["metric"]
        before, after = found["float"]
        if before == before or after == after:  # else nothing was measured
            figures = f"{formats.metric(before, name)} → {formats.metric(after, name)}"
            lines.append(f"  {formats.metric_title(name) or 'metric'}: {figures}")
    what = "channels" if found["kind"] == "prune" else "rank"
    lines += [*_figures(found), *_listed(found["layers"], what)]
    if found["made"]:
        lines.append(f"  new project: {found['made']}")
    return "\n".join(lines)


def _figures(found: Result) -> list[str]:
    """Before and after: parameters, multiply-accumulates, and milliseconds where measured."""
    from workbench.charts import formats

    lines = []
    for key, words in (("parameters", "parameters"), ("macs", "multiply-accumulates")):
        before, after = found[key]
        lines.append(f"  {words}: {formats.count(before)} → {formats.count(after)}")
    before, after = found.get("latency_ms", (float("nan"),) * 2)
    if before == before and after == after:
        lines.append(f"  float model in ONNX Runtime: {before:.3g} → {after:.3g} ms")
    return lines


def _listed(numbers: Mapping[str, int], what: str) -> list[str]:
    lines = [f"    {what} {number}  {name}" for name, number in list(numbers.items())[:LISTED]]
    more = len(numbers) - LISTED
    return [*lines, f"    and {more} more"] if more > 0 else lines


_ALIGNED = Option(
    "--aligned", {"action": "store_true", "help": "keep multiples of 16 channels (Ascend devices)"}
)
_NAME = Option("--name", {"help": "of the new project, beside this one (default: from its name)"})

SHRINKING: Mapping[str, Command] = {
    "prune-search": Command(
        "find which channels matter least and a plan for so many times fewer bit-operations",
        _search,
        _searched,
        (
            Option(
                "--target",
                {"type": float, "default": 2.0, "help": "times fewer bit-operations (default 2)"},
            ),
            Option("--sensitivity", {"default": "taylor", "choices": ["taylor", "l2"]}),
            Option(
                "--batches",
                {"type": int, "default": None, "help": "of 8 training samples (default 32)"},
            ),
            Option("--max-ratio", {"type": float, "default": 0.8, "help": "of a layer's channels"}),
            _ALIGNED,
            Option(
                "--apply",
                {"action": "store_true", "help": "take the plan over: see workbench prune"},
            ),
        ),
        _searched_words,
    ),
    "prune": Command(
        "remove channels as the layers table says, and keep that as a new project",
        _prune,
        _shrunk,
        (
            Option(
                "--ratio",
                {"type": float, "default": None, "help": "of all layers, instead of the table's"},
            ),
            _NAME,
            _ALIGNED,
        ),
        _shrunk_words,
    ),
    "decompose": Command(
        "replace large convolutions by pairs of smaller ones, and keep that as a new project",
        _decompose,
        _decomposed,
        (
            Option("--dry-run", {"action": "store_true", "help": "only say what would become"}),
            _NAME,
            Option(
                "--rank-rule",
                {"default": "compat", "help": "compat, scale_free, energy, or a rank"},
            ),
            Option("--energy", {"type": float, "default": 0.9, "help": "to keep, with energy"}),
            Option(
                "--max-error",
                {"type": float, "default": None, "help": "leave layers alone beyond it (relative)"},
            ),
            Option(
                "--min-gain",
                {"type": float, "default": 0.0, "help": "of multiply-accumulates, at least"},
            ),
        ),
        _shrunk_words,
    ),
}
