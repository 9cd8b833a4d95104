"""Module-level quantisation: time of converted layers and of calibration, and its memory."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from benchmarks.harness import Row, high_water, ratio, report, threads
from workbench.engine import (
    INT4_AWQ_WEIGHT_QUANT_CFG,
    INT8_MINMAX_WEIGHT_QUANT_CFG,
    INT8_SMOOTHQUANT_CFG,
    convert,
    quantize,
)

SIDE = 2048
TOKENS = 512
BATCHES = 4
BLOCKS, WIDE = 48, 1024
MINMAX_INT8: dict[str, Any] = {**INT8_SMOOTHQUANT_CFG, "algorithm": "minmax"}
INT8_TOKENS: dict[str, Any] = {
    "quant_cfg": {
        "weights": {"type": "int8", "symmetric": True, "strategy": "channel"},
        "inputs": {"type": "int8", "symmetric": True, "strategy": "token"},
    },
    "algorithm": "minmax",
}
MINMAX_INT4: dict[str, Any] = {
    **INT8_MINMAX_WEIGHT_QUANT_CFG,
    "quant_cfg": INT4_AWQ_WEIGHT_QUANT_CFG["quant_cfg"],
}


def tokens(count: int, features: int = SIDE, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(0)).to(dtype)


def against_float(title: str, config: dict[str, Any], dtype: torch.dtype, count: int) -> Row:
    layer = nn.Linear(SIDE, SIDE).to(dtype)
    model = nn.Sequential(copy.deepcopy(layer))
    quantize(model, config, any_dtype=True)
    x = tokens(count, dtype=dtype)
    model(x)
    convert(model)
    times, own, plain = ratio(lambda: model(x), lambda: layer(x), repeats=9)
    kind = str(dtype).removeprefix("torch.")
    return Row(
        f"{title}, converted Linear ÷ {kind} Linear, {SIDE}×{SIDE}, {count} tokens",
        threads(),
        times,
        "×",
        note=f"{own * 1e3:.1f} ms, float {plain * 1e3:.1f} ms",
    )


def calibration(config: dict[str, Any]) -> Callable[[], None]:
    layer = nn.Linear(SIDE, SIDE)
    x = tokens(4 * TOKENS).reshape(4, TOKENS, SIDE)

    def run() -> None:
        model = nn.Sequential(layer)
        quantize(model, {**config, "batch_num": BATCHES}, any_dtype=True)
        for _ in range(BATCHES):
            model(x)

    return run


def awq_against_minmax() -> Row:
    times, own, plain = ratio(
        calibration(INT4_AWQ_WEIGHT_QUANT_CFG), calibration(MINMAX_INT8), repeats=3
    )
    return Row(
        f"AWQ int4 with 20 grid points ÷ minmax int8 W8A8 calibration, {SIDE}×{SIDE}",
        threads(),
        times,
        "×",
        8.0,
        f"{own:.2f} s, minmax {plain:.2f} s, {BATCHES} batches of 4 × {TOKENS} tokens",
    )


def blocks(count: int) -> nn.Sequential:
    """Feed-forward blocks that keep the size of their inputs."""
    layers = []
    for _ in range(count):
        for sides in ((WIDE, 4 * WIDE), (4 * WIDE, WIDE)):
            layer = nn.Linear(*sides, bias=False, dtype=torch.bfloat16)
            nn.init.normal_(layer.weight, std=sides[0] ** -0.5)
            layers.append(layer)
    return nn.Sequential(*layers)


def child(config: dict[str, Any]) -> None:
    torch.set_num_threads(threads())
    x = tokens(64, WIDE, torch.bfloat16)
    small = blocks(1)
    with torch.no_grad():
        small(x)  # what the library allocates once
    before = psutil.Process().memory_info().rss
    model = blocks(BLOCKS)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    with torch.no_grad():
        quantize(model, config)
        model(x)
        convert(model)
    peak = high_water()
    print(json.dumps({"ratio": (peak - before) / size, "size": size}))


CONFIGS = {
    "minmax int8": INT8_MINMAX_WEIGHT_QUANT_CFG,
    "smoothquant int8": INT8_SMOOTHQUANT_CFG,
    # The number of grid points changes the time, not the memory.
    "awq int4": {**INT4_AWQ_WEIGHT_QUANT_CFG, "algorithm": {"awq": {"grids_num": 3}}},
}


def memory(name: str) -> Row:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.module_quantize", name],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return Row(
        f"peak memory while calibrating and converting ÷ model size, {name}",
        threads(),
        found["ratio"],
        "×",
        1.3,
        f"{BLOCKS} feed-forward blocks in bfloat16, {found['size'] / 2**20:.0f} MB",
    )


def main() -> None:
    torch.set_num_threads(threads())
    rows: list[Row] = []
    with torch.no_grad():
        rows += [
            against_float("int8 W8A8", INT8_SMOOTHQUANT_CFG, dtype, count)
            for count in (1, TOKENS)
            for dtype in (torch.float32, torch.bfloat16)
        ]
        rows.append(against_float("int8 W8A8 per token", INT8_TOKENS, torch.float32, TOKENS))
        rows.append(against_float("int4 weight-only", MINMAX_INT4, torch.float32, TOKENS))
        rows.append(awq_against_minmax())
    rows += [memory(name) for name in CONFIGS]
    report(rows)


if __name__ == "__main__":
    child(CONFIGS[sys.argv[1]]) if len(sys.argv) > 1 else main()
