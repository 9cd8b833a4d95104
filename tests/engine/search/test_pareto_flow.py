"""Strategy 'Pareto' end to end: the files it leaves, latency, and ONNX Runtime as the judge."""

from __future__ import annotations

import json

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from workbench.engine import (
    AutoCalibrationEvaluatorBase,
    CancelToken,
    accuracy_based_auto_calibration,
    create_quant_config,
    quantize_model,
)
from workbench.engine.errors import Cancelled
from workbench.engine.files.config import default_config, read_config
from workbench.engine.files.record import read_record
from workbench.engine.graph.capture import capture
from workbench.engine.search.auto_calibration import search_configuration
from workbench.engine.search.cache import TrialCache
from workbench.engine.search.pareto import ParetoStrategy

POINTS = "accuracy_based_auto_calibration_pareto.json"
FINAL = "accuracy_based_auto_calibration_final_config.json"


class Fidelity(AutoCalibrationEvaluatorBase):
    """Mean cosine of the outputs with the float model's, on a batch of its own."""

    max_loss = 0.002

    def __init__(self, net, data, token=None, stop_at=-1):
        self.data, self.calls = data, 0
        self.token, self.stop_at = token, stop_at
        with torch.no_grad():
            self.wanted = net(data)

    def calibration(self, model):
        model(self.data)

    def evaluate(self, model):
        self.calls += 1
        if self.calls == self.stop_at:
            self.token.cancel()
        with torch.no_grad():
            return float(nn.functional.cosine_similarity(model(self.data), self.wanted).mean())

    def metric_eval(self, original_metric, new_metric):
        loss = original_metric - new_metric
        return loss <= self.max_loss, loss


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=4),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()


@pytest.fixture(scope="module")
def data():
    return torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(net, data, folder, evaluator, **options):
    config = folder / "config.json"
    create_quant_config(str(config), net, (data,))
    accuracy_based_auto_calibration(
        net,
        evaluator,
        str(config),
        str(folder / "record.txt"),
        str(folder / "out/net"),
        (data,),
        strategy="Pareto",
        **options,
    )


def test_files(net, data, folder):
    run(net, data, folder, Fidelity(net, data), objective="size", pareto_trials=24)
    found = json.loads((folder / "out" / POINTS).read_text())
    assert found["objective"] == "size" and found["unit"] == "bytes"
    points = found["points"]
    assert len(points) == 25  # the trials and the float model
    assert [p["cost"] for p in points] == sorted(p["cost"] for p in points)
    assert points[-1]["layers"] == dict.fromkeys(points[-1]["layers"], "float")
    assert points[-1]["cost"] == 4 * sum(p.numel() for p in net.parameters())
    assert {choice for p in points for choice in p["layers"].values()} >= {
        "float",
        "quantized",
        "int4",
        "hfmg",
    }
    cheapest = next(p for p in points if p["satisfied"])
    assert 0 < cheapest["cost"] < points[-1]["cost"]

    final = read_config(str(folder / "out" / FINAL))
    record = read_record(str(folder / "record.txt"))
    assert set(record.layers) == {n for n, c in cheapest["layers"].items() if c != "float"}
    for name, choice in cheapest["layers"].items():
        settings = final.layers[name]
        assert settings.quant_enable == (choice != "float")
        if choice != "float":
            bits = 4 if "int4" in choice else 8
            assert settings.weight.num_bits == record.layers[name].wts_bits == bits
            assert settings.activation.act_algo == ("hfmg" if "hfmg" in choice else "ifmr")
    assert any(r.wts_bits == 4 for r in record.layers.values())
    with torch.no_grad():
        wanted = net(data)
    for kind in ("fake_quant", "qdq"):
        file = onnxruntime.InferenceSession(folder / f"out/net_{kind}_model.onnx")
        (output,) = file.run(None, {file.get_inputs()[0].name: data.numpy()})
        cosine = nn.functional.cosine_similarity(torch.from_numpy(output), wanted).mean()
        assert 1 - float(cosine) < 0.01
    quantizers = [
        node
        for node in onnx.load(folder / "out/net_deploy_model.onnx").graph.node
        if node.op_type == "AscendQuant"
    ]
    assert len(quantizers) == len(record.layers)

    # The final config gives the same record by itself.
    again = quantize_model(str(folder / "out" / FINAL), "again.onnx", "again.txt", net, (data,))
    with torch.no_grad():
        again(data)
    assert read_record("again.txt").layers == record.layers


def test_a_cancelled_search_leaves_its_points(net, data, folder):
    token = CancelToken()
    evaluator = Fidelity(net, data, token, 10)
    with pytest.raises(Cancelled):
        run(net, data, folder, evaluator, cancel=token)
    points = json.loads((folder / "out" / POINTS).read_text())["points"]
    assert 5 < len(points) < 12
    assert (folder / "out" / FINAL).exists()


def test_latency_is_measured_where_it_matters_and_kept(net, data, tmp_path):
    captured = capture(net, (data,))
    config = default_config(captured.layers)
    strategy = ParetoStrategy("latency", 14, ("int4",))

    def search():
        cache = TrialCache(tmp_path)
        return search_configuration(
            net, captured, config, Fidelity(net, data), strategy=strategy, cache=cache
        )

    first, second = search(), search()
    assert all(p.measured for p in first.pareto if p.on_front)
    assert sum(p.measured for p in first.pareto) < len(first.pareto)
    assert all(p.cost > 0 for p in first.pareto if p.measured)
    assert first.satisfied and first.objective == "latency"
    # Two measurements would never agree to the last digit.
    assert [p.cost for p in first.pareto] == [p.cost for p in second.pareto]


def test_onnx_runtime_judges_the_same_configurations(net, data):
    captured = capture(net, (data,))
    config = default_config(captured.layers)
    strategy = ParetoStrategy("bops", 8, ("int4",))
    results = [
        search_configuration(
            net, captured, config, Fidelity(net, data), strategy=strategy, evaluate_backend=backend
        )
        for backend in ("torch", "onnx")
    ]
    left, right = ({frozenset(p.choices.items()): p.loss for p in r.pareto} for r in results)
    shared = set(left) & set(right)
    assert len(shared) >= 7
    for key in shared:
        assert left[key] == pytest.approx(right[key], abs=1e-4)
