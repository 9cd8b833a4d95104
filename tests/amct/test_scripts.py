"""Users' scripts with one changed line, each in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import warm

MODEL = """
import torch
from torch import nn
import {package} as amct

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
    nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32, 5),
).eval()
batches = [torch.randn(4, 3, 8, 8) for _ in range(2)]
"""

PTQ = (
    MODEL
    + """
with open("simple.cfg", "w") as file:
    file.write('''
        batch_num: 2
        activation_offset: true
        common_config {{ ifmr_quantize {{ search_step: 0.02 }} dmq_balancer {{}} }}
        override_layer_types {{ layer_type: "Conv2d" calibration_config {{
            hfmg_quantize {{ num_of_bins: 1024 }} }} }}
        override_layer_configs {{ layer_name: "3" calibration_config {{
            arq_quantize {{ quant_bits: 7 }} dmq_balancer {{ migration_strength: 0.6 }} }} }}
        skip_layers: "0"
    ''')
amct.create_quant_config("./config.json", model, (batches[0],), config_defination="./simple.cfg")
balancing = amct.quantize_preprocess("./config.json", "./record.txt", model, (batches[0],))
with torch.no_grad():
    balancing(batches[0])
calibrating = amct.quantize_model(
    "./config.json", "./modified.onnx", "./record.txt", model, (batches[0],),
    input_names=["input"], output_names=["output"], dynamic_axes={{"input": {{0: "batch"}}}},
)
with torch.no_grad():
    for batch in batches:
        calibrating(batch)
amct.save_model("./modified.onnx", "./record.txt", "./results/net")
"""
)

AUTO = (
    MODEL
    + """
from {bases} import {evaluator}, AutoCalibrationStrategyBase, SensitivityBase
import numpy as np

class Evaluator({evaluator}):
    def calibration(self, model):
        with torch.no_grad():
            for batch in batches:
                model(batch)

    def evaluate(self, model):
        with torch.no_grad():
            return torch.cat([model(batch) for batch in batches])

    def metric_eval(self, original_metric, new_metric):
        loss = (original_metric - new_metric).abs().max()
        return np.bool_(loss < 0.004), loss

class OneByOne(AutoCalibrationStrategyBase):
    def initialize(self, ranking):
        self.names = sorted(ranking, key=ranking.get)
        self.floats = 0

    def update_quant_config(self, metric_eval):
        if not metric_eval[0]:
            self.floats += 1
        config = {{name: i >= self.floats for i, name in enumerate(self.names)}}
        return {{"stop_flag": bool(metric_eval[0]), "roll_back_config": config}}

class Difference(SensitivityBase):
    def compare(self, data, other):
        return -float(np.abs(data - other).mean())

amct.create_quant_config("./config.json", model, (batches[0],), batch_num=2)
amct.accuracy_based_auto_calibration(
    model, Evaluator(), "./config.json", "./record.txt", "./results/net", (batches[0],),
    strategy={strategy}, sensitivity={sensitivity},
)
"""
)
BASES = "workbench.amct.common.auto_calibration"


def run(script: str, folder: Path) -> set[str]:
    (folder / "script.py").write_text(script)
    done = warm.run(["script.py"], cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("package", ["workbench.amct", "workbench.engine"])
def test_post_training_quantisation(package: str, tmp_path: Path) -> None:
    files = run(PTQ.format(package=package), tmp_path)
    assert files >= {
        "config.json",
        "record.txt",
        "modified.onnx",
        "results/net_deploy_model.onnx",
        "results/net_fake_quant_model.onnx",
    }
    record = (tmp_path / "record.txt").read_text()
    assert 'key: "3"' in record
    assert 'key: "0"' not in record
    assert "INT7" in record
    assert "tensor_balance_factor" in record


@pytest.mark.parametrize(
    ("strategy", "sensitivity"),
    [('"BinarySearch"', '"CosineSimilarity"'), ("OneByOne()", "Difference()")],
)
def test_auto_calibration(strategy: str, sensitivity: str, tmp_path: Path) -> None:
    script = AUTO.format(
        package="workbench.amct",
        bases=BASES,
        evaluator="AutoCalibrationEvaluatorBase",
        strategy=strategy,
        sensitivity=sensitivity,
    )
    files = run(script, tmp_path)
    assert files >= {
        "amct_log/accuracy_based_auto_calibration_record.json",
        "results/accuracy_based_auto_calibration_ranking_information.json",
        "results/accuracy_based_auto_calibration_final_config.json",
        "results/net_deploy_model.onnx",
        "results/net_fake_quant_model.onnx",
    }
