"""Auto-calibration of a network with an LSTM (chapter 20 section 10, row 13)."""

import json

import onnx
import pytest
import rnn_models
import torch

from workbench.engine import (
    AutoCalibrationEvaluatorBase,
    accuracy_based_auto_calibration,
    create_quant_config,
)
from workbench.engine.analysis.cost import model_cost
from workbench.engine.analysis.similarity import measure_layers
from workbench.engine.files.config import default_config
from workbench.engine.files.record import read_record
from workbench.engine.flows.ptq import calibrate
from workbench.engine.graph.capture import capture

RANKING = "accuracy_based_auto_calibration_ranking_information.json"


class Distance(AutoCalibrationEvaluatorBase):
    """The metric is the mean output; any quantised layer moves it."""

    def __init__(self, batches, allowed):
        self.batches, self.allowed = batches, allowed

    def calibration(self, model):
        for batch in self.batches:
            model(*batch)

    def evaluate(self, model):
        with torch.no_grad():
            return [torch.cat([y.flatten() for y in model(*batch)]) for batch in self.batches]

    def metric_eval(self, original, new):
        loss = max(float((a - b).abs().max()) for a, b in zip(original, new, strict=True))
        return loss <= self.allowed, loss


@pytest.mark.parametrize(("allowed", "kept"), [(1.0, {"rnn", "fc"}), (0.0, set())])
def test_the_ranking_holds_the_lstm(tmp_path, monkeypatch, allowed, kept):
    monkeypatch.chdir(tmp_path)
    net = rnn_models.model("LSTM")
    batch = rnn_models.data(net, 4)
    create_quant_config("config.json", net, batch)
    accuracy_based_auto_calibration(
        net, Distance([batch], allowed), "config.json", "record.txt", "out/net", batch
    )
    ranking = dict(json.loads((tmp_path / "out" / RANKING).read_text()))
    assert set(ranking) == {"rnn", "fc"}
    assert all(0.9 < value < 1.0 for value in ranking.values())
    deploy = tmp_path / "out/net_deploy_model.onnx"
    assert deploy.exists() == bool(kept)
    if kept:
        assert set(read_record("record.txt").layers) == kept
        types = {n.name: n.op_type for n in onnx.load(deploy).graph.node}
        assert types["rnn"] == "BasicLSTMInplaceFillWindowCache"


def test_similarity_and_cost_of_an_lstm():
    net = rnn_models.model("LSTM", False)
    batch = rnn_models.data(net, 4)
    captured = capture(net, batch)
    config = default_config(captured.layers)
    calibration = calibrate(captured, config, [batch])
    measured = measure_layers(calibration.folded, calibration.finalize(), [batch])
    assert 0.999 < measured["rnn"].cosine < 1.0
    size = sum(p.numel() for p in net.parameters()) * 4
    cost = model_cost(captured.layers, config, size)
    # 160 LSTM and 12 Linear weights lose three bytes each; 2*16 and 1 factors of 8 bytes come in.
    assert cost.size_bytes == size - 3 * (160 + 12) + 8 * (32 + 1)
    assert cost.bit_operations == (5 * 160 + 5 * 12) * 64
