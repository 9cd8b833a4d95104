"""One activation algorithm on one tensor: time and memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.harness import Row, high_water, report, seconds, threads
from workbench.engine.algorithms.hfmg import HFMGObserver
from workbench.engine.algorithms.ifmr import IFMRObserver

VALUES = 20_000_000
BINS = 8192
# What the flow gives a layer, and enough to keep everything.
BUDGETS = {"counted": 2**18, "kept": 2**31}


def observer(kind: str, bits: int, asymmetric: bool, budget: int) -> IFMRObserver | HFMGObserver:
    if kind == "HFMG":
        return HFMGObserver(bits, asymmetric, BINS)
    return IFMRObserver(bits, asymmetric, byte_budget=budget)


def search(kind: str, bits: int, asymmetric: bool, budget: int, x: torch.Tensor) -> Any:
    watching = observer(kind, bits, asymmetric, budget)
    for part in x.chunk(4):
        watching.update(part)
    return watching.result()


def ifmr() -> list[Row]:
    x = torch.randn(VALUES, generator=torch.Generator().manual_seed(0))
    rows = []
    for name, budget in BUDGETS.items():
        for bits in (8, 16):
            for asymmetric in (True, False):
                kind = "asymmetric" if asymmetric else "symmetric"
                taken = seconds(
                    lambda b=bits, a=asymmetric, k=budget: search("IFMR", b, a, k, x), 3
                )
                figure = f"IFMR, 2·10⁷ values {name}, {bits} bits, {kind}"
                rows.append(Row(figure, threads(), taken, "s", 2.0))
    return rows


def hfmg() -> list[Row]:
    rows = []
    generator = torch.Generator().manual_seed(0)
    for title, x in (
        ("normal", torch.randn(1 << 20, generator=generator)),
        ("uniform", torch.rand(1 << 20, generator=generator)),
    ):
        for bits in (8, 16):
            for asymmetric in (True, False):
                watching = observer("HFMG", bits, asymmetric, 0)
                watching.update(x)
                watching.update(x * 1.1)
                kind = "asymmetric" if asymmetric else "symmetric"
                figure = f"HFMG search, {BINS} bins, {bits} bits, {kind}, {title} data"
                rows.append(Row(figure, threads(), seconds(watching.result), "s", 0.3))
    return rows


def memory(kind: str, bits: int, budget: int) -> float:
    """Peak memory in MB that a search adds, in a process of its own."""
    code = f"import benchmarks.observers as o;print(o.peak_of({kind!r}, {bits}, {budget}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def peak_of(kind: str, bits: int, budget: int) -> float:
    torch.set_num_threads(threads())
    count = VALUES if kind == "IFMR" else 1 << 20
    x = torch.randn(count, generator=torch.Generator().manual_seed(0))
    search(kind, bits, True, budget, x[: 1 << 17])
    before = high_water()
    search(kind, bits, True, budget, x)
    return (high_water() - before) / 2**20


def measured_memory() -> list[Row]:
    rows = []
    size = VALUES * 4 / 2**20
    for name, budget in BUDGETS.items():
        for bits in (8, 16):
            # The data itself counts as one of the three.
            share = 1 + memory("IFMR", bits, budget) / size
            figure = f"IFMR memory ÷ data, 2·10⁷ values {name}, {bits} bits"
            rows.append(Row(figure, threads(), share, "×", 3.0))
    for bits in (8, 16):
        figure = f"HFMG memory, {BINS} bins, {bits} bits"
        rows.append(Row(figure, threads(), memory("HFMG", bits, 0), "MB", 100.0))
    return rows


MEASURES: tuple[Callable[[], list[Row]], ...] = (ifmr, hfmg, measured_memory)

if __name__ == "__main__":
    torch.set_num_threads(threads())
    report([row for measure in MEASURES for row in measure()])
