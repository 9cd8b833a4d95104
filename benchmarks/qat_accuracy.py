"""What quantisation-aware training of the examples gives back: graph QAT, two epochs, one recipe.

The evaluation pictures are looked at once, at the end. An epoch is that of the examples' own
training: 3,584 pictures in 28 batches.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.harness import Row, report, threads
from workbench import zoo
from workbench.engine import create_quant_retrain_config, create_quant_retrain_model
from workbench.engine.export.torch_module import to_fake_quant
from workbench.engine.files.config import QuantConfig, default_config
from workbench.engine.files.layer_rules import weight_bits_obstacle
from workbench.engine.flows.ptq import calibrate
from workbench.engine.flows.training import fit
from workbench.engine.flows.training_settings import TrainingSettings
from workbench.engine.graph.capture import Captured, capture
from workbench.zoo.score import top1
from workbench.zoo.training_data import TrainingDigits

RECIPE = TrainingSettings(epochs=2, learning_rate=3e-4)
SEEDS = (0, 1, 2)


def post_training(name: str, bits: int) -> float:
    """The metric after calibration alone; layers that cannot have so few bits keep 8."""
    example = zoo.load(name)
    captured = capture(example.model, zoo.example_input(name))
    config = with_bits(default_config(captured.layers), captured, bits)
    found = calibrate(captured, config, [example.data.calibration])
    return top1(to_fake_quant(found.folded, found.finalize()), example.data)


def with_bits(config: QuantConfig, captured: Captured, bits: int) -> QuantConfig:
    layers = dict(config.layers)
    for name, layer in layers.items():
        if layer.weight is not None and not weight_bits_obstacle(captured.layers[name], bits):
            layers[name] = replace(
                layer,
                activation=replace(layer.activation, num_bits=bits),
                weight=replace(layer.weight, num_bits=bits),
            )
    return replace(config, layers=layers)


def trained(name: str, bits: int, seed: int, *, equalize: bool = True) -> tuple[float, float]:
    """The metric before the first step and after the last."""
    example = zoo.load(name)
    data, inputs = example.data, zoo.example_input(name)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "qat.json"
        create_quant_retrain_config(str(config), example.model, inputs)
        captured = capture(example.model, inputs)
        entries = json.loads(config.read_text())
        for layer, entry in entries.items():
            if layer in captured.layers and not weight_bits_obstacle(captured.layers[layer], bits):
                entry["retrain_data_config"]["dst_type"] = f"INT{bits}"
                entry["retrain_weight_config"]["dst_type"] = f"INT{bits}"
        config.write_text(json.dumps(entries))
        model = create_quant_retrain_model(
            str(config), example.model, f"{folder}/record.txt", inputs, equalize=equalize
        )
        model.eval()
        with torch.no_grad():
            model(data.calibration)
        before = top1(model, data)
        fit(
            model,
            TrainingDigits(name, seed=seed),
            loss=nn.CrossEntropyLoss(),
            settings=replace(RECIPE, seed=seed),
        )
        return before, top1(model, data)


def rows_of(name: str, bits: int, target: float, *, equalize: bool = True) -> Row:
    """The loss in points, mean of the seeds."""
    example = zoo.load(name)
    plain = top1(example.model, example.data)
    calibrated = post_training(name, bits)
    runs = [trained(name, bits, seed, equalize=equalize) for seed in SEEDS]
    after = sum(run[1] for run in runs) / len(runs)
    each = ", ".join(f"{run[1]:.2%}" for run in runs)
    return Row(
        f"INT{bits} loss after QAT, {name}{'' if equalize else ', channels as they are'}",
        threads(),
        (plain - after) * 100,
        "points",
        target,
        f"float {plain:.2%}, PTQ {calibrated:.2%}, before training {runs[0][0]:.2%}, "
        f"after two epochs {each}",
    )


def main() -> None:
    report(
        [
            rows_of("digits-mobilenet-hard", 8, 0.3),
            rows_of("digits-mobilenet-hard", 8, 0, equalize=False),
            rows_of("digits-resnet", 4, 0),
            rows_of("digits-mobilenet", 4, 0),
        ]
    )


if __name__ == "__main__":
    torch.set_num_threads(threads())
    main()
