"""Calibration of all layers, one batch 8×3×224×224, against the plain float forward of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from benchmarks.harness import Row, ratio, report, settled, threads
from workbench.engine.files.config import QuantConfig, default_config
from workbench.engine.flows.calibration import Calibration
from workbench.engine.graph.capture import Captured, capture
from workbench.zoo.architectures import mobilenet_v2, resnet18, resnet50, vit_small

BINS = 8192
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
        ("IFMR sampled", config, 2**20, 1.5),
        (f"HFMG {BINS} bins", with_hfmg(config), None, hfmg_target),
    ):
        calibrate, last = prepared(captured, given, limit, batch)
        value, ours, plain = ratio(calibrate, forward, repeats=6)
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
    """What is timed: the run over the batch. Weights and hooks are prepared outside."""
    ready = [Calibration(captured, config, sample_limit=limit) for _ in range(8)]

    def calibrate() -> None:
        calibration = ready.pop()
        calibration.model(batch)
        calibration.finalize()

    def scales() -> dict[str, float]:
        last = ready.pop()
        last.model(batch)
        return {name: r.scale_d or 1.0 for name, r in last.finalize().layers.items()}

    return calibrate, scales


if __name__ == "__main__":
    torch.set_num_threads(threads())
    report([row for network in NETWORKS for row in measure(*network)])
