"""Timing as ratios in one process, results as rows of one table."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One figure: what was measured, on how many threads, and the target (0: report only)."""

    figure: str
    threads: int
    value: float
    unit: str
    target: float = 0.0
    note: str = ""

    @property
    def verdict(self) -> str:
        if not self.target:
            return ""
        return "met" if self.value <= self.target else "MISSED"


def seconds(function: Callable[[], Any], repeats: int = 5) -> float:
    """Median wall time of ``function`` after one warm-up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def ratio(
    function: Callable[[], Any], reference: Callable[[], Any], repeats: int = 5
) -> tuple[float, float, float]:
    """Median of the pairwise ratios function ÷ reference, run in turn, and both medians."""
    function(), reference()
    ratios, ours, theirs = [], [], []
    for _ in range(repeats):
        start = time.perf_counter()
        reference()
        middle = time.perf_counter()
        function()
        end = time.perf_counter()
        ours.append(end - middle)
        theirs.append(middle - start)
        ratios.append(ours[-1] / theirs[-1])
    return statistics.median(ratios), statistics.median(ours), statistics.median(theirs)


def in_child(module: str, threads: int) -> list[Row]:
    """Run ``python -m module`` on so many threads; its last line is its rows as JSON."""
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads), OMP_WAIT_POLICY="PASSIVE")
    done = subprocess.run(
        [sys.executable, "-m", module], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise SystemExit(f"{module} failed")
    return [Row(**row) for row in json.loads(done.stdout.strip().splitlines()[-1])]


def report(rows: list[Row]) -> None:
    """Print rows for the parent process (see ``in_child``)."""
    print(json.dumps([asdict(row) for row in rows]))


def threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", "1"))


def high_water() -> int:
    """Largest resident size of this process in bytes; ``ru_maxrss`` would be its parent's, too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not say how much memory a process has used at most")


def settled(model: torch.nn.Module, batch: torch.Tensor) -> torch.nn.Module:
    """``model`` in eval mode with batch-norm statistics of ``batch``: sizes stay natural."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(batch)
    return model.eval()
