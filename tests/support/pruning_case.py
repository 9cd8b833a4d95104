"""A small network whose channels can go, as a search of it is kept; figures to check by hand.

``stem`` (1 → 8 channels) goes alone; ``body.a`` and ``body.b`` (8 → 8) are added, so they go
together; ``head`` (8 → 10) loses nothing. Each has one position: products are channels × channels.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from sample_layers import layer

from workbench.engine.graph.layers import LayerInfo
from workbench.engine.search.channel_space import LayerCost
from workbench.engine.search.channel_table import (
    AxisRow,
    ChannelTable,
    GroupRow,
    LayerRow,
    ParameterRow,
)
from workbench.studio.pruning_state import (
    DecomposedLayer,
    DecompositionState,
    PruningState,
    Shrunk,
    plan_of,
)

NAMES = ("stem", "body.a", "body.b", "head")
WIDTHS = {"stem": (1, 8), "body.a": (8, 8), "body.b": (8, 8), "head": (8, 10)}
MACS = sum(cin * cout for cin, cout in WIDTHS.values())


def layers() -> list[LayerInfo]:
    """The layers, as a project of them is made."""
    return [
        dataclasses.replace(
            layer(i), name=name, in_channels=WIDTHS[name][0], out_channels=WIDTHS[name][1]
        )
        for i, name in enumerate(NAMES)
    ]


def table() -> ChannelTable:
    groups = (GroupRow({"stem": 1.0}, 8, 1, 1), GroupRow({"body.a": 1.0, "body.b": 1.0}, 8, 1, 1))
    made_by = {"stem": 0, "body.a": 1, "body.b": 1}
    read_from = {"body.a": 0, "body.b": 0, "head": 1}
    rows, parameters = [], []
    for name, (cin, cout) in WIDTHS.items():
        inputs = AxisRow(cin, ((read_from[name], 1.0),) if name in read_from else ())
        outputs = AxisRow(cout, ((made_by[name], 1.0),) if name in made_by else ())
        rows.append(
            LayerRow(
                name, LayerCost(cin, cout, cin * cout, cout, True, 1024, False), inputs, outputs
            )
        )
        parameters.append(ParameterRow(cin * cout, 4, (outputs, inputs)))
    return ChannelTable(groups, tuple(rows), tuple(parameters), 0)


def pruning(*, latency: bool = True, aligned: bool = False) -> PruningState:
    """Plans that take (0, 0), (2, 0), (4, 2) and (6, 6) units; the first and third were timed."""
    found = table()
    steps = ((0, 0), (2, 0), (4, 2), (6, 6))
    targets = (1.0, 1.2, 2.0, 4.0)
    times = (4.0, np.nan, 2.5, np.nan) if latency else (np.nan,) * 4
    plans = [
        plan_of(found, counts, kind="search", target=target, latency_ms=float(ms))
        for counts, target, ms in zip(steps, targets, times, strict=True)
    ]
    uniform = [
        plan_of(found, (count, count), kind="uniform", target=count / 8) for count in (0, 2, 4)
    ]
    values = np.array([8.0, 1.0, 7.0, 2.0, 6.0, 3.0, 5.0, 4.0])
    sensitivity = {"stem": values / 100, "body.a": values, "body.b": values}
    return PruningState(
        measure="taylor",
        sensitivity=sensitivity,
        original=plans[0],
        plans=tuple(plans),
        uniform=tuple(uniform),
        blocked={"head": "its outputs are those of the <model>"},
        coupled={"body.a": ("body.b",), "body.b": ("body.a",)},
        table=found,
        aligned=aligned,
        max_ratio=0.8,
        loss="cross-entropy",
        samples=64,
    )


def decomposition() -> DecompositionState:
    done = DecomposedLayer(
        "body.a", "64×64×3×3", "SCFK", 32.0, 0.125, 36_864, 12_288, 36_864, 12_288, ""
    )
    kept = DecomposedLayer(
        "stem", "8×1×3×3", "UNCHANGE", np.nan, np.nan, 72, 72, 72, 72, "fewer than 64 <channels>"
    )
    return DecompositionState({}, (kept, done), 40_000, 15_424, 50_000, 25_424)


def shrunk(kind: str, folder: str, base: str, onnx: tuple[str, str] = ("", "")) -> Shrunk:
    return Shrunk(
        kind=kind,
        name="net-smaller",
        folder=folder,
        base=base,
        metric_name="top1",
        metric=(0.98, 0.61),
        parameters=(1000, 400),
        bytes=(4000, 1600),
        macs=(216, 60),
        latency_ms=(4.0, 2.0),
        onnx=onnx,
        layers={"stem": 4},
        notes={"head": "its outputs are those of the <model>"},
        asked={"ratios": {"stem": 0.5}, "aligned": False} if kind == "prune" else {"options": {}},
    )
