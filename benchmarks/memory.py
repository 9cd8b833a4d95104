"""Peak memory of a whole run, above the model and the batch's ten largest activations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import torch

from benchmarks.harness import Row, high_water, report, settled, threads
from workbench.engine import create_quant_config, quantize_model, save_model
from workbench.zoo import architectures

BATCHES = 4


def child(name: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(threads())
    batch = torch.randn(8, 3, 224, 224)
    model = settled(getattr(architectures, name)(), batch[:2])
    sizes: list[int] = []
    handles = [
        m.register_forward_hook(lambda _m, _i, out: sizes.append(out.numel() * 4))
        for m in model.modules()
        if not list(m.children())
    ]
    with torch.no_grad():
        model(batch[:1])  # lets the library allocate what it allocates once
    for handle in handles:
        handle.remove()
    activations = 8 * sum(sorted(sizes)[-10:])
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            str(Path(folder) / n) for n in ("config.json", "modified.onnx", "record.txt", "net")
        ]
        # One small export first: its imports are the process's, not the model's.
        small = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))
        create_quant_config(paths[0], small, (batch[:1],))
        quantize_model(paths[0], paths[1], paths[2], small, (batch[:1],))(batch[:1])
        save_model(paths[1], paths[2], paths[3])
        before = psutil.Process().memory_info().rss
        create_quant_config(paths[0], model, (batch,), batch_num=BATCHES)
        calibrating = quantize_model(paths[0], paths[1], paths[2], model, (batch,))
        for _ in range(BATCHES):
            calibrating(batch)
        save_model(paths[1], paths[2], paths[3])
    peak = high_water()
    print(json.dumps({"extra": peak - before - activations, "activations": activations}))


def main() -> None:
    rows = []
    for title, name in (("ResNet-18", "resnet18"), ("MobileNetV2", "mobilenet_v2")):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", name],
            capture_output=True,
            text=True,
            check=True,
            env=dict(os.environ),
        )
        result = json.loads(done.stdout.splitlines()[-1])
        rows.append(
            Row(
                f"peak memory of the whole flow, {title}, {BATCHES} batches",
                threads(),
                result["extra"] / 2**20,
                "MB",
                300.0,
                f"above the model and {result['activations'] / 2**20:.0f} MB of activations",
            )
        )
    report(rows)


if __name__ == "__main__":
    child(sys.argv[1]) if len(sys.argv) > 1 else main()
