"""Calibration of all layers, one batch 8×3×224×224, against the plain float forward of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from benchmarks.harness import Row, ratio, report, settled, threads
from workbench.engine.files.config import QuantConfig, default_config
from workbench.engine.files.record import Record
from workbench.engine.flows.calibration import Calibration
from workbench.engine.graph.capture import Captured, capture
from workbench.zoo.architectures import mobilenet_v2, resnet18, resnet50, vit_small

BINS = 8192
SAMPLE = 2**17
REPEATS = 4
NETWORKS: tuple[tuple[str, Callable[[], nn.Module], float, float], ...] = (
    ("ResNet-18", resnet18, 1.5, 0.0),
    ("ResNet-50", resnet50, 1.5, 2.0),
    ("MobileNetV2", mobilenet_v2, 2.3, 0.0),
    ("ViT-S", vit_small, 1.5, 0.0),
)


def with_hfmg(config: QuantConfig) -> QuantConfig:
    """``config`` with HFMG instead of IFMR in every layer."""
    layers = {
        name: replace(
            layer, activation=replace(layer.activation, act_algo="hfmg", num_of_bins=BINS)
        )
        for name, layer in config.layers.items()
    }
    return replace(config, layers=layers)


def measure(
    title: str, build: Callable[[], nn.Module], exact_target: float, hfmg_target: float
) -> list[Row]:
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
    for mode, given, limit, target in (
        ("IFMR exact", config, None, exact_target),
        ("IFMR sampled", config, SAMPLE, 1.5),
        (f"HFMG {BINS} bins", with_hfmg(config), None, hfmg_target),
    ):
        calibrate, last = prepared(captured, given, limit, batch)
        value, ours, plain = ratio(calibrate, forward, repeats=REPEATS)
        figure = f"calibration ÷ forward, {title}, {mode}"
        rows.append(Row(figure, threads(), value, "×", target, f"{ours:.2f} s / {plain:.2f} s"))
        scales[mode] = last()
    worst = max(
        abs(scales["IFMR sampled"][name] / scale - 1)
        for name, scale in scales["IFMR exact"].items()
    )
    rows.append(Row(f"largest scale difference of sampling, {title}", threads(), worst * 100, "%"))
    return rows


def prepared(
    captured: Captured, config: QuantConfig, limit: int | None, batch: torch.Tensor
) -> tuple[Callable[[], None], Callable[[], dict[str, float]]]:
    """What is timed, the run over the batch, and the scales that the last run found.

    Weights and hooks are prepared outside.
    """
    # Each can run once; one more for the warm-up.
    ready = [Calibration(captured, config, sample_limit=limit) for _ in range(REPEATS + 1)]
    records: list[Record] = []

    def calibrate() -> None:
        calibration = ready.pop()
        calibration.model(batch)
        records[:] = [calibration.finalize()]

    def scales() -> dict[str, float]:
        return {name: layer.scale_d or 1.0 for name, layer in records[0].layers.items()}

    return calibrate, scales


if __name__ == "__main__":
    torch.set_num_threads(threads())
    report([row for network in NETWORKS for row in measure(*network)])
