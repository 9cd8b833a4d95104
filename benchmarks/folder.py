"""Memory of quantising a model of 1 B parameters: from a folder, and in memory block by block.

The decoder is synthetic. Each job runs in a process of its own; its memory is what its peak adds to
what the process holds after imports. WORKBENCH_DECODER_B=0.1 takes a tenth of the parameters.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.harness import Row, high_water, report, threads
from workbench.engine import (
    calibrate_by_block,
    empty_weights,
    quantize,
    quantize_folder,
)
from workbench.engine.files.tensor_folder import ShardWriter, TensorFolder
from workbench.engine.flows.folder_model import FolderWeights
from workbench.zoo.decoder import Decoder, DecoderConfig

BILLIONS = float(os.environ.get("WORKBENCH_DECODER_B", "1"))
WIDTH, HIDDEN, VOCABULARY = 2048, 5504, 32000
ONE_BLOCK = 2 * WIDTH * WIDTH + 2 * WIDTH * WIDTH // 4 + 3 * WIDTH * HIDDEN
BLOCKS = max(2, round((BILLIONS * 1e9 - 2 * VOCABULARY * WIDTH) / ONE_BLOCK))
CONFIG = DecoderConfig(VOCABULARY, WIDTH, BLOCKS, heads=16, kv_heads=4, hidden=HIDDEN)
GIGABYTE = 1e9
INT4: dict[str, Any] = {
    "batch_num": 2,
    "quant_cfg": {"weights": {"type": "int4", "symmetric": True, "strategy": "channel"}},
    "algorithm": {"awq": {"grids_num": 4}},
    "skip_layers": {"lm_head"},
}


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(VOCABULARY, (1, 64), generator=generator) for _ in range(2)]


def hollow() -> Decoder:
    with empty_weights():
        return Decoder(CONFIG)


def write_model(folder: Path) -> int:
    """bfloat16 weights, a shard for each block; bytes."""
    folder.mkdir()
    writer = ShardWriter(folder)
    generator = torch.Generator().manual_seed(0)
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, parameter in hollow().named_parameters():
        place = ".".join(name.split(".")[:3])
        shards.setdefault(place, {})[name] = parameter
    for tensors in shards.values():
        drawn = {
            name: torch.randn(p.shape, generator=generator).mul_(0.02).bfloat16()
            if p.dim() > 1
            else torch.ones(p.shape, dtype=torch.bfloat16)
            for name, p in tensors.items()
        }
        writer.write(drawn)
    return writer.finish()


def from_folder(folder: str) -> None:
    quantize_folder(folder, f"{folder}-small", INT4, batches(), model=hollow())


def in_memory(folder: str) -> None:
    model = hollow()
    FolderWeights(model, TensorFolder(folder)).fill(model)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                # What is loaded are views of the mapped file, which go only with the whole file.
                module._parameters[name] = torch.nn.Parameter(parameter.clone(), False)
    quantize(model, INT4)
    calibrate_by_block(model, batches(), convert_blocks=True)


JOBS = {"folder": from_folder, "memory": in_memory}


def measured(job: str, folder: Path) -> tuple[float, float]:
    """GB above what the imports left, and seconds, of a job in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.folder", job, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return tuple(json.loads(done.stdout.splitlines()[-1]))  # type: ignore[return-value]


if __name__ == "__main__":
    torch.set_num_threads(threads())
    if len(sys.argv) == 3:
        before, start = psutil.Process().memory_info().rss, time.perf_counter()
        JOBS[sys.argv[1]](sys.argv[2])
        print(json.dumps([(high_water() - before) / GIGABYTE, time.perf_counter() - start]))
        raise SystemExit
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "float"
        size = write_model(source) / GIGABYTE
        title = f"decoder of {size / 2:.2f} B parameters ({size:.2f} GB in bfloat16)"
        streamed, seconds = measured("folder", source)
        held, held_seconds = measured("memory", source)
    report(
        [
            Row(
                f"quantize_folder, {title}: peak memory",
                threads(),
                streamed,
                "GB",
                size + 1.0,
                f"{seconds:.0f} s; model size + 1 GB allowed",
            ),
            Row(
                "calibrate_by_block of it in memory: peak ÷ model size",
                threads(),
                held / size,
                "×",
                1.3,
                f"{held:.2f} GB, {held_seconds:.0f} s",
            ),
        ]
    )
