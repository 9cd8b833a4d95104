"""Auto-calibration: evaluations, time outside ``evaluate``, layers given up, early verdicts."""

from __future__ import annotations

import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.harness import Row, report, threads
from benchmarks.planted import early_rows, planted_rows
from workbench import zoo
from workbench.engine import (
    AutoCalibrationEvaluatorBase,
    accuracy_based_auto_calibration,
    create_quant_config,
)
from workbench.engine.events import Event, TrialFinished


class Evaluator(AutoCalibrationEvaluatorBase):
    """Top-1 with at most 0.5 points of loss, on the zoo's data; times itself."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.inside = 0.0

    def calibration(self, model: nn.Module) -> None:
        with torch.no_grad():
            model(self.data.calibration)

    def evaluate(self, model: nn.Module) -> float:
        start = time.perf_counter()
        with torch.no_grad():
            hits = sum(
                int((model(x).argmax(1) == y).sum())
                for x, y in zip(
                    self.data.evaluation.split(256), self.data.labels.split(256), strict=True
                )
            )
        self.inside += time.perf_counter() - start
        return hits / len(self.data.labels)

    def metric_eval(self, original: float, new: float) -> tuple[bool, float]:
        return original - new <= 0.005, original - new


def main() -> None:
    example = zoo.load("digits-mobilenet-hard")
    evaluator = Evaluator(example.data)
    trials: list[TrialFinished] = []
    marks: dict[str, float] = {}

    def on_event(event: Event) -> None:
        if isinstance(event, TrialFinished):
            if event.phase == "original":
                marks["original"] = time.perf_counter()
                marks["inside original"] = evaluator.inside
            trials.append(event)
            marks["last"] = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        os.chdir(base)  # the history goes to ./amct_log
        inputs = (example.data.calibration[:2],)
        create_quant_config(str(base / "config.json"), example.model, inputs)
        start = time.perf_counter()
        accuracy_based_auto_calibration(
            example.model,
            evaluator,
            str(base / "config.json"),
            str(base / "record.txt"),
            str(base / "net"),
            inputs,
            on_event=on_event,
        )
        end = time.perf_counter()
    layers = len(trials[0].float_layers)
    probes = [t for t in trials if t.phase == "search"]
    final = trials[-1]
    searching = marks["last"] - marks["original"]
    inside = evaluator.inside - marks["inside original"]
    answer = f"{layers} layers, {len(final.float_layers)} left in float, "
    apart = f"capture and export {end - start - searching - marks['inside original']:.1f} s apart"
    report(
        [
            Row(
                "trial evaluations, digits-mobilenet-hard",
                threads(),
                len(probes),
                "",
                math.ceil(math.log2(layers)),
                answer + f"loss {final.loss * 100:.2f} points",
            ),
            Row(
                "time outside evaluate ÷ inside",
                threads(),
                (searching - inside) / inside,
                "×",
                0.5,
                f"search {searching:.1f} s; {apart}",
            ),
            *planted_rows(),
            *early_rows(),
        ]
    )


if __name__ == "__main__":
    torch.set_num_threads(threads())
    main()
