"""Calibration of all layers, one batch 8×3×224×224, against the plain float forward of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.harness import Row, ratio, report, settled, threads
from workbench.engine.files.config import default_config
from workbench.engine.flows.calibration import Calibration
from workbench.engine.graph.capture import capture
from workbench.zoo.architectures import mobilenet_v2, resnet18


def measure(title: str, build: Callable[[], nn.Module], target: float) -> list[Row]:
    torch.manual_seed(0)
    batch = torch.randn(8, 3, 224, 224)
    model = settled(build(), batch)
    captured = capture(model, (batch,))
    config = default_config(captured.layers)

    def forward() -> None:
        with torch.no_grad():
            model(batch)

    rows = []
    scales = {}
    for mode, limit, bound in (("exact", None, target), ("sampled", 2**20, 1.5)):
        # What is timed is the run over the batch; weights and hooks are prepared outside.
        ready = [Calibration(captured, config, sample_limit=limit) for _ in range(8)]

        def calibrate(ready: list[Calibration] = ready) -> None:
            calibration = ready.pop()
            calibration.model(batch)
            calibration.finalize()

        value, ours, plain = ratio(calibrate, forward, repeats=6)
        figure = f"calibration ÷ forward, {title}, {mode}"
        rows.append(Row(figure, threads(), value, "×", bound, f"{ours:.2f} s / {plain:.2f} s"))
        last = ready.pop()
        last.model(batch)
        scales[mode] = {n: r.scale_d or 1.0 for n, r in last.finalize().layers.items()}
    worst = max(abs(scales["sampled"][n] / s - 1) for n, s in scales["exact"].items())
    rows.append(Row(f"largest scale difference of sampling, {title}", threads(), worst * 100, "%"))
    return rows


if __name__ == "__main__":
    torch.set_num_threads(threads())
    report(measure("ResNet-18", resnet18, 1.5) + measure("MobileNetV2", mobilenet_v2, 2.3))
