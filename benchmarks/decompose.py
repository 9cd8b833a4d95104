"""Tensor decomposition of one large kernel: processor time, and memory above what was there.

Everything runs on one BLAS thread, in child processes of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.harness import Row, high_water, report
from workbench.engine import auto_decomposition

# Shape (outputs, inputs, height, width), and chapter 60's targets: CPU seconds, added MB.
SHAPES = (
    ((512, 512, 5, 5), 2.5, 250.0),
    ((1024, 1024, 3, 3), 4.5, 350.0),
    ((2048, 2048, 3, 3), 35.0, 1200.0),
)


def random_layer(shape: tuple[int, ...]) -> nn.Conv2d:
    layer = nn.Conv2d(shape[1], shape[0], shape[2:], bias=False)
    with torch.no_grad():
        layer.weight.normal_(std=(2 / prod(shape[1:])) ** 0.5)
    return layer


def child(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    # Loads what the first call of a process loads; 177 channels take the same route.
    auto_decomposition(random_layer((177, 177, 3, 3)))
    layer = random_layer(shape)
    before = high_water()
    start = time.process_time()
    pair, _ = auto_decomposition(layer)
    seconds = time.process_time() - start
    row = pair.decomposition_report_[0]
    print(json.dumps({**row, "seconds": seconds, "added": high_water() - before}))


def reference(shape: tuple[int, ...]) -> None:
    """What the reference does: two singular value decompositions with full-size factors."""
    weight = np.random.default_rng(0).standard_normal(shape)
    matrix = weight.transpose(1, 2, 0, 3).reshape(shape[1] * shape[2], -1)
    start = time.process_time()
    for _ in range(2):
        np.linalg.svd(matrix)
    print(json.dumps({"seconds": time.process_time() - start}))


def in_process(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.decompose", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    rows = []
    for shape, seconds, megabytes in SHAPES:
        name = "×".join(map(str, shape))
        found = in_process("ours", *map(str, shape))
        note = f"rank {found['rank']}, relative error {found['relative_error']:.6f}"
        rows += [
            Row(f"decompose {name}, CPU", 1, found["seconds"], "s", seconds, note),
            Row(f"decompose {name}, added", 1, found["added"] / 2**20, "MB", megabytes),
        ]
    theirs = in_process("reference", *map(str, SHAPES[0][0]))["seconds"]
    rows.append(
        Row(
            "decompose 512×512×5×5 ÷ two full NumPy SVDs, CPU",
            1,
            rows[0].value / theirs,
            "×",
            0.25,
            f"{theirs:.1f} s",
        )
    )
    report(rows)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        run = child if sys.argv[1] == "ours" else reference
        run(tuple(map(int, sys.argv[2:])))
