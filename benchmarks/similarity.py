"""Cosine similarity and SQNR of all layers, each in isolation, against the plain float forward."""

from __future__ import annotations

import torch

from benchmarks.harness import Row, ratio, report, settled, threads
from workbench.engine.analysis.similarity import measure_layers
from workbench.engine.files.config import default_config
from workbench.engine.flows.ptq import calibrate
from workbench.engine.graph.capture import capture
from workbench.zoo.architectures import mobilenet_v2, resnet18


def main() -> None:
    rows = []
    for title, build in (("ResNet-18", resnet18), ("MobileNetV2", mobilenet_v2)):
        torch.manual_seed(0)
        batch = torch.randn(8, 3, 224, 224)
        model = settled(build(), batch)
        captured = capture(model, (batch,))
        calibration = calibrate(captured, default_config(captured.layers), [(batch,)])
        record = calibration.finalize()

        def forward(model: torch.nn.Module = model, batch: torch.Tensor = batch) -> None:
            with torch.no_grad():
                model(batch)

        value, ours, plain = ratio(
            lambda c=calibration, r=record, b=batch: measure_layers(c.folded, r, [(b,)]), forward
        )
        rows.append(
            Row(
                f"cosine + SQNR of all layers ÷ forward, {title}",
                threads(),
                value,
                "×",
                3.0,
                f"{ours:.2f} s / {plain:.2f} s",
            )
        )
    report(rows)


if __name__ == "__main__":
    torch.set_num_threads(threads())
    main()
