"""A model of 3 GB: peak memory of ``quantize_model`` and ``save_model``, each in its own process.

Not part of the default set: it takes minutes, 12 GB of memory and 14 GB of disk
(``python -m benchmarks bigmodel``; ``WORKBENCH_BIG_GB`` changes the size). The model is a stack of
Linears of 4,096 × 4,096; the saved fake-quant file must run in ONNX Runtime.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.harness import Row, high_water, report, threads
from workbench.engine.export import external

WIDTH = 4096
LAYER_BYTES = WIDTH * WIDTH * 4
GIGABYTES = float(os.environ.get("WORKBENCH_BIG_GB", "3"))
LAYERS = max(1, round(GIGABYTES * 10**9 / LAYER_BYTES))
NAMES = ("config.json", "modified.onnx", "record.txt", "big")


class Stack(nn.Module):
    """Linears that keep the size of what goes through them."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.utils.skip_init(nn.Linear, WIDTH, WIDTH) for _ in range(layers)
        )
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-(WIDTH**-0.5), WIDTH**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x) * 1.7
        return x


def child(step: str, folder: str) -> None:
    config, modified, record, prefix = (str(Path(folder) / name) for name in NAMES)
    torch.manual_seed(0)
    torch.set_num_threads(threads())
    batch = torch.randn(4, WIDTH)
    # So that a smaller model takes the same path.
    external.LIMIT_BYTES = min(external.LIMIT_BYTES, LAYERS * LAYER_BYTES)
    start = time.perf_counter()
    if step == "quantize_model":
        from workbench.engine import create_quant_config, quantize_model

        model = Stack(LAYERS).eval()
        create_quant_config(config, model, (batch,))
        start = time.perf_counter()
        quantize_model(config, modified, record, model, (batch,))(batch)
    elif step == "save_model":
        from workbench.engine.export.save import save_model

        save_model(modified, record, prefix)
    else:
        import onnxruntime as ort

        options = ort.SessionOptions()
        # Prepacking would hold every weight a second time.
        options.add_session_config_entry("session.disable_prepacking", "1")
        session = ort.InferenceSession(
            f"{prefix}_fake_quant_model.onnx", options, providers=["CPUExecutionProvider"]
        )
        (y,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        if y.shape != (4, WIDTH) or not np.isfinite(y).all() or not y.any():
            raise SystemExit("the fake-quant file gives no sensible output")
    result = {
        "seconds": time.perf_counter() - start,
        "peak": high_water(),
    }
    print(json.dumps(result))


def main() -> None:
    size = LAYERS * LAYER_BYTES
    targets = {"quantize_model": 2.2, "save_model": 1.3, "ONNX Runtime": 0.0}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for step, target in targets.items():
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.bigmodel", step, folder],
                capture_output=True,
                text=True,
                env=dict(os.environ),
                check=False,
            )
            if done.returncode:
                raise SystemExit(done.stderr)
            result = json.loads(done.stdout.splitlines()[-1])
            note = f"{result['peak'] / 1e9:.2f} GB of {size / 1e9:.2f}, {result['seconds']:.0f} s"
            rows.append(
                Row(
                    f"peak memory ÷ model, {step}, {GIGABYTES:g} GB",
                    threads(),
                    result["peak"] / size,
                    "×",
                    target,
                    note,
                )
            )
    report(rows)


if __name__ == "__main__":
    child(*sys.argv[1:]) if len(sys.argv) > 1 else main()
