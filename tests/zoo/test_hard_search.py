"""The engine's automatic search finds exactly the layers that were made hard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import workbench.zoo as zoo
from workbench.engine import (
    AutoCalibrationEvaluatorBase,
    accuracy_based_auto_calibration,
    create_quant_config,
)
from workbench.zoo import score
from workbench.zoo.unbalance import HARD_LAYERS

BATCHES = 2


class Top1(AutoCalibrationEvaluatorBase):
    """At most half a point below the original; keeps every metric it measured."""

    def __init__(self, data: zoo.DigitsData) -> None:
        self.data = data
        self.seen: list[float] = []

    def calibration(self, model: nn.Module) -> None:
        size = self.data.batch_size
        with torch.inference_mode():
            for batch in range(BATCHES):
                model(self.data.calibration[batch * size : (batch + 1) * size])

    def evaluate(self, model: nn.Module) -> float:
        self.seen.append(score.top1(model, self.data))
        return self.seen[-1]

    def metric_eval(self, original_metric: float, new_metric: float) -> tuple[bool, float]:
        return original_metric - new_metric <= 0.005, original_metric - new_metric


@pytest.mark.slow
def test_search_rolls_back_the_hard_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = zoo.load("digits-mobilenet-hard")
    inputs = zoo.example_input("digits-mobilenet-hard")
    create_quant_config("all.json", example.model, inputs, batch_num=BATCHES)
    evaluator = Top1(example.data)
    accuracy_based_auto_calibration(
        example.model, evaluator, "all.json", "record.txt", "out/net", inputs
    )

    original, all_int8, *_, final = evaluator.seen
    assert original - all_int8 >= 0.03
    assert original - final <= 0.005
    (found,) = tmp_path.rglob("*final_config.json")
    layers = {
        name: entry["quant_enable"]
        for name, entry in json.loads(found.read_text()).items()
        if isinstance(entry, dict)
    }
    assert {name for name, enabled in layers.items() if not enabled} == set(HARD_LAYERS)
    assert sum(layers.values()) == 25
