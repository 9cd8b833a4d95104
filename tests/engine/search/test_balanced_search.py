"""Auto-calibration of a configuration with DMQ balancers: what the reference cannot do."""

import json

import pytest
import torch
from torch import nn

from workbench.engine import (
    AutoCalibrationEvaluatorBase,
    accuracy_based_auto_calibration,
    create_quant_config,
    quantize_model,
    quantize_preprocess,
)
from workbench.engine.files.record import read_record

FINAL = "accuracy_based_auto_calibration_final_config.json"


class Outputs(AutoCalibrationEvaluatorBase):
    """Metric: the model's outputs on the data; satisfied within ``limit`` of the original's."""

    def __init__(self, data, limit):
        self.data, self.limit = data, limit
        self.metrics = []

    def calibration(self, model):
        for batch in self.data:
            model(batch)

    def evaluate(self, model):
        with torch.no_grad():
            self.metrics.append(torch.as_tensor(model(self.data[0])))
        return self.metrics[-1]

    def metric_eval(self, original, new):
        loss = float((original - new).abs().max())
        return loss <= self.limit, loss


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(32, 3)
    ).eval()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randn(4, 4, 6, 6, generator=generator) for _ in range(2)]
    for batch in batches:
        batch[:, 1] *= 30
    return batches


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configure(net, data, folder, names, **options):
    path = str(folder / "config.json")
    create_quant_config(path, net, (data[0],), batch_num=2, **options)
    settings = json.loads(open(path).read())
    for name in names:
        settings[name]["dmq_balancer_param"] = 0.5
    with open(path, "w") as file:
        json.dump(settings, file)
    return path


def search(net, evaluator, folder, data, **options):
    accuracy_based_auto_calibration(
        net, evaluator, str(folder / "config.json"), str(folder / "record.txt"),
        str(folder / "out" / "net"), (data[0],), **options,
    )  # fmt: skip


def test_the_record_is_that_of_the_flow_by_hand(net, data, folder):
    configure(net, data, folder, ("0", "2"))
    # Tight enough that something is rolled back, loose enough that something is quantised.
    probe = Outputs(data, 1e9)
    search(net, probe, folder, data)
    _, all_loss = probe.metric_eval(probe.metrics[0], probe.metrics[1])
    evaluator = Outputs(data, all_loss * 0.95)
    search(net, evaluator, folder, data)
    final = str(folder / "out" / FINAL)
    found = read_record(folder / "record.txt").layers
    assert 0 < len(found) < 3
    record, onnx_file = str(folder / "hand.txt"), str(folder / "hand.onnx")
    settings = json.loads(open(final).read())
    if any("dmq_balancer_param" in settings[n] for n in found):
        quantize_preprocess(final, record, net, (data[0],))(data[0])
    model = quantize_model(final, onnx_file, record, net, (data[0],))
    for batch in data:
        model(batch)
    assert open(record).read() == open(folder / "record.txt").read()


def test_onnx_and_torch_evaluate_the_same_network(net, data, folder):
    configure(net, data, folder, ("0", "2", "4"))
    metrics = {}
    for backend in ("torch", "onnx"):
        evaluator = Outputs(data, 1e9)
        search(net, evaluator, folder, data, evaluate_backend=backend)
        metrics[backend] = evaluator.metrics[1]
        assert all(
            r.tensor_balance_factor for r in read_record(folder / "record.txt").layers.values()
        )
    torch.testing.assert_close(metrics["torch"], metrics["onnx"], rtol=1e-4, atol=1e-4)
    assert not torch.equal(metrics["torch"], evaluator.metrics[0])


def test_compat_refuses_as_the_reference_cannot(net, data, folder):
    configure(net, data, folder, ("0",), compat=True)
    with pytest.raises(RuntimeError, match="DMQ balancer"):
        search(net, Outputs(data, 1e9), folder, data)
