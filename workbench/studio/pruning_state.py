"""What a project knows of pruning: sensitivities, plans, what each choice costs; read back."""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.engine.search.channel_table import ChannelTable, Remains
from workbench.studio.store import Store, put_meta

KEY = "pruning"
MEASURES = ("taylor", "l2")


@dataclass(frozen=True)
class PrunePlan:
    """Which layers lose how many channels, and what is left.

    ``kind``: search (``target`` is the wanted ratio of bit-operations, original ÷ plan), uniform
    (``target`` is the one ratio that every layer is given) or columns (as the Layers table says,
    ``target`` is NaN). ``reached``: bit-operations of the original ÷ those of the plan.
    ``ratios``: layer -> ``prune_ratio``; layers that are not named keep all. ``removed``: layer ->
    output channels that go. ``bytes`` of the parameters; ``macs`` and ``bitops`` of one sample;
    ``latency_ms`` of the float model in ONNX Runtime, NaN where it was not measured.
    """

    kind: str
    target: float
    reached: float
    ratios: Mapping[str, float]
    removed: Mapping[str, int]
    parameters: int
    macs: int
    bitops: float
    bytes: int
    latency_ms: float = math.nan

    @property
    def met(self) -> bool:
        """Whether a plan of a search reaches its target."""
        return self.kind != "search" or self.reached >= self.target


@dataclass(frozen=True, eq=False)
class PruningState:
    """The last ``search_pruning`` of a project.

    ``sensitivity``: layer -> one value for each of its output channels, NaN for those that cannot
    go; ``measure``: taylor (the loss that would be lost) or l2 (scores of BalancedL2Norm, 0 to 1 a
    layer); ``loss`` and ``samples``: what it was measured with. ``original``: the whole model.
    ``plans`` by rising target, ``uniform`` by rising ratio. ``blocked``: why layers lose nothing.
    ``coupled``: layer -> others that must be switched on with it. ``aligned``: multiples of 16
    channels are kept. ``max_ratio``: of a layer, at most. ``batches``: as asked for, 0: as usual.
    """

    measure: str
    sensitivity: Mapping[str, NDArray[np.float64]]
    original: PrunePlan
    plans: tuple[PrunePlan, ...]
    uniform: tuple[PrunePlan, ...]
    blocked: Mapping[str, str]
    coupled: Mapping[str, tuple[str, ...]]
    table: ChannelTable
    aligned: bool
    max_ratio: float
    loss: str = ""
    samples: int = 0
    batches: int = 0
    seconds: float = 0.0
    job: int = 0

    def plan_for(self, target: float) -> PrunePlan:
        """The first plan whose target is at least ``target``; beyond them all the last one."""
        at = bisect.bisect_left([plan.target for plan in self.plans], target - 1e-9)
        return self.plans[min(at, len(self.plans) - 1)]

    def uniform_for(self, ratio: float) -> PrunePlan:
        """The plan of one ratio for every layer that is nearest to ``ratio``."""
        return min(self.uniform, key=lambda plan: abs(plan.target - ratio))

    def with_ratios(self, ratios: Mapping[str, float]) -> PrunePlan:
        """What is left when layers are given these ratios; a look-up in a table."""
        counts = self.table.counts(ratios, aligned=self.aligned)
        return plan_of(self.table, counts, kind="columns", target=math.nan)

    def notes(self, ratios: Mapping[str, float]) -> dict[str, str]:
        """Of layers that are given a ratio and lose nothing all the same: why."""
        found = {name: self.blocked[name] for name in ratios if name in self.blocked}
        for group in self.table.groups:
            if group.count(ratios, aligned=self.aligned):
                continue
            alone = group.count(ratios, aligned=False)
            missing = [name for name in group.producers if not ratios.get(name)]
            for name in group.producers:
                if name not in ratios or name in found:
                    continue
                if missing:
                    found[name] = f"its channels go with those of {', '.join(missing)}: off"
                elif alone:
                    found[name] = f"its {group.size} channels stay because of the alignment to 16"
                else:
                    found[name] = f"{ratios[name]:g} of {group.size} channels rounds to none"
        return found


@dataclass(frozen=True)
class DecomposedLayer:
    """A convolution of ``decompose``: ``rank`` and ``error`` are NaN where none was chosen.

    ``mode`` is UNCHANGE for a layer that stays, for the reason ``skipped``. ``error``: relative,
    ‖W − Ŵ‖ ÷ ‖W‖. ``macs`` of one sample.
    """

    name: str
    kernel: str
    mode: str
    rank: float
    error: float
    macs: int
    macs_after: int
    parameters: int
    parameters_after: int
    skipped: str


@dataclass(frozen=True)
class DecompositionState:
    """The last ``decompose(dry_run=True)``: ``layers`` in execution order, figures of the model."""

    options: Mapping[str, Any]
    layers: tuple[DecomposedLayer, ...]
    parameters: int
    parameters_after: int
    macs: int
    macs_after: int
    seconds: float = 0.0

    @property
    def frame(self) -> pd.DataFrame:
        """``layers`` as a table."""
        names = list(DecomposedLayer.__dataclass_fields__)
        return pd.DataFrame([asdict(layer) for layer in self.layers], columns=names)

    @property
    def changed(self) -> int:
        return sum(not layer.skipped for layer in self.layers)


@dataclass(frozen=True)
class Shrunk:
    """A smaller project and the one that it was made of.

    ``kind``: prune or decompose. ``folder`` is the new project's, ``base`` the other one's. Pairs
    are (before, after): the float metric, parameters, bytes, MACs, milliseconds in ONNX Runtime.
    ``onnx``: float files, before and after, in the new project, empty if ONNX cannot hold them.
    ``layers``: what became of each layer: a number of channels that went, or a rank. ``notes``: why
    others stay as they are.
    ``asked``: what ``log.py`` needs to do it again.
    """

    kind: str
    name: str
    folder: str
    base: str
    metric_name: str
    metric: tuple[float, float]
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    macs: tuple[int, int]
    latency_ms: tuple[float, float]
    onnx: tuple[str, str]
    layers: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def plan_of(
    table: ChannelTable,
    counts: tuple[int, ...],
    *,
    kind: str,
    target: float,
    latency_ms: float = math.nan,
) -> PrunePlan:
    """The plan in which each group loses so many units."""
    left: Remains = table.remains(counts)
    return PrunePlan(
        kind=kind,
        target=target,
        reached=left.ratio,
        ratios=table.ratios(counts),
        removed=table.removed(counts),
        parameters=left.parameters,
        macs=left.macs,
        bitops=left.bitops,
        bytes=left.bytes,
        latency_ms=latency_ms,
    )


def mean_sensitivity(state: PruningState | None) -> dict[str, float]:
    """Layer -> mean of its channels' sensitivities, of layers that can lose any."""
    if state is None:
        return {}
    return {
        name: float(np.nanmean(values))
        for name, values in state.sensitivity.items()
        if np.isfinite(values).any()
    }


def store_pruning(store: Store, state: PruningState) -> None:
    """Keep a search in place of an earlier one."""
    facts = {
        "measure": state.measure,
        "original": asdict(state.original),
        "plans": [asdict(plan) for plan in state.plans],
        "uniform": [asdict(plan) for plan in state.uniform],
        "blocked": dict(state.blocked),
        "coupled": {name: list(others) for name, others in state.coupled.items()},
        "table": state.table.to_json(),
        "aligned": state.aligned,
        "max_ratio": state.max_ratio,
        "loss": state.loss,
        "samples": state.samples,
        "batches": state.batches,
        "seconds": state.seconds,
        "job": state.job,
    }
    rows = [
        (name, np.ascontiguousarray(values, "<f8").tobytes())
        for name, values in state.sensitivity.items()
    ]
    with store.write() as connection:
        connection.execute("DELETE FROM channels")
        connection.executemany("INSERT INTO channels VALUES (?, ?)", rows)
        put_meta(connection, {KEY: facts})


def read_pruning(store: Store, facts: Any) -> PruningState | None:
    """The stored search; ``facts`` is the stored value. None before the first, or if it is none."""
    if not isinstance(facts, dict):
        return None
    try:
        return _pruning(store, facts)
    except (KeyError, TypeError, ValueError):  # a project may come from anywhere
        return None


def _pruning(store: Store, facts: Mapping[str, Any]) -> PruningState:
    rows = store.connection.execute("SELECT name, data FROM channels").fetchall()
    return PruningState(
        sensitivity={name: np.frombuffer(data, "<f8").astype(np.float64) for name, data in rows},
        original=PrunePlan(**facts["original"]),
        plans=tuple(PrunePlan(**plan) for plan in facts["plans"]),
        uniform=tuple(PrunePlan(**plan) for plan in facts["uniform"]),
        coupled={name: tuple(others) for name, others in facts["coupled"].items()},
        table=ChannelTable.from_json(facts["table"]),
        **{
            key: facts[key]
            for key in (
                "measure", "blocked", "aligned", "max_ratio", "loss", "samples", "batches",
                "seconds", "job",
            )
        },
    )  # fmt: skip


def read_decomposition(value: Any) -> DecompositionState | None:
    if not value:
        return None
    try:
        layers = tuple(DecomposedLayer(**layer) for layer in value["layers"])
        return DecompositionState(**{**value, "layers": layers})
    except (KeyError, TypeError):
        return None


def read_shrunk(value: Any) -> Shrunk | None:
    if not value:
        return None
    pairs = ("metric", "parameters", "bytes", "macs", "latency_ms", "onnx")
    try:
        return Shrunk(**{**value, **{key: tuple(value[key]) for key in pairs}})
    except (KeyError, TypeError):
        return None


def as_stored(value: Any) -> Any:
    """A dataclass as JSON holds it."""
    return json.loads(json.dumps(asdict(value)))
