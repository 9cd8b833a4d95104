"""The three public calls on ResNet-18, three files out."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from benchmarks.harness import Row, report, threads
from workbench.engine import create_quant_config, quantize_model, save_model
from workbench.zoo.architectures import resnet18


def main() -> None:
    torch.manual_seed(0)
    model = resnet18().eval()
    batch = torch.randn(8, 3, 224, 224)
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            str(Path(folder) / n) for n in ("config.json", "modified.onnx", "record.txt", "out/net")
        ]
        start = time.perf_counter()
        create_quant_config(paths[0], model, (batch,))
        created = time.perf_counter()
        calibrating = quantize_model(paths[0], paths[1], paths[2], model, (batch,))
        quantized = time.perf_counter()
        calibrating(batch)
        calibrated = time.perf_counter()
        save_model(paths[1], paths[2], paths[3])
        saved = time.perf_counter()
        files = len(list((Path(folder) / "out").iterdir()))
    total = (created - start) + (quantized - created) + (saved - calibrated)
    report(
        [
            Row(
                "create_quant_config + quantize_model + save_model, ResNet-18",
                threads(),
                total,
                "s",
                8.0,
                f"{created - start:.1f} + {quantized - created:.1f} + {saved - calibrated:.1f} s, "
                f"{files} files, first calls of a fresh process",
            )
        ]
    )


if __name__ == "__main__":
    torch.set_num_threads(threads())
    main()
