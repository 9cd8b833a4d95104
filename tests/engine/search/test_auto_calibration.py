"""The whole search with counting evaluators: calls, files, and what stays untouched."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from workbench.engine import (
    AutoCalibrationEvaluatorBase,
    Cancelled,
    CancelToken,
    accuracy_based_auto_calibration,
    create_quant_config,
    quantize_model,
)
from workbench.engine.events import BracketMoved, RankingKnown, TrialFinished
from workbench.engine.files.history import read_history
from workbench.engine.files.record import read_record

RANKING = "accuracy_based_auto_calibration_ranking_information.json"
FINAL = "accuracy_based_auto_calibration_final_config.json"


class Counting(AutoCalibrationEvaluatorBase):
    """Satisfied when at most ``threshold`` modules are fake-quant wrappers."""

    def __init__(self, data, threshold):
        self.data, self.threshold = data, threshold
        self.calls = {"calibration": 0, "evaluate": 0, "metric_eval": 0}

    def calibration(self, model):
        self.calls["calibration"] += 1
        model(self.data)

    def evaluate(self, model):
        self.calls["evaluate"] += 1
        return sum(type(m).__name__ == "FakeQuantLayer" for m in model.modules())

    def metric_eval(self, original, new):
        self.calls["metric_eval"] += 1
        return new <= self.threshold, new - original


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 1),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).eval()


@pytest.fixture
def data():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(net, evaluator, folder, data, **options):
    if not (folder / "config.json").exists():
        create_quant_config(str(folder / "config.json"), net, (data,))
    accuracy_based_auto_calibration(
        net,
        evaluator,
        str(folder / "config.json"),
        str(folder / "record.txt"),
        str(folder / "out/net"),
        (data,),
        **options,
    )


def history(folder):
    return read_history(
        (folder / "amct_log/accuracy_based_auto_calibration_record.json").read_text()
    )


@pytest.mark.parametrize(
    ("threshold", "evaluate", "calibration", "float_layers", "entries"),
    [(9, 2, 1, 0, 1), (3, 6, 2, 2, 4), (2, 6, 2, 3, 5), (1, 5, 2, 4, 3), (0, 4, 1, 5, 4)],
)
def test_calls_and_answers(
    net, data, folder, threshold, evaluate, calibration, float_layers, entries
):
    evaluator = Counting(data, threshold)
    run(net, evaluator, folder, data)
    assert evaluator.calls["evaluate"] == evaluate
    assert evaluator.calls["calibration"] == calibration
    tried = history(folder)
    assert len(tried) == entries
    assert all(tried[0]["roll_back_config"].values())
    assert sum(not on for on in tried[-1]["roll_back_config"].values()) == float_layers
    lines = Path("amct_log/accuracy_based_auto_calibration_record.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == tried
    ranking = json.loads((folder / "out" / RANKING).read_text())
    values = [value for _, value in ranking]
    assert values == sorted(values) and {n for n, _ in ranking} == {"0", "2", "4", "5", "7"}
    everything_float = float_layers == 5
    assert (folder / "out" / FINAL).exists() != everything_float
    assert (folder / "out/net_deploy_model.onnx").exists() != everything_float
    if not everything_float:
        quantized = {n for n, on in tried[-1]["roll_back_config"].items() if on}
        assert set(read_record(folder / "record.txt").layers) == quantized
        names = {n.name for n in onnx.load(folder / "out/net_deploy_model.onnx").graph.node}
        assert {n for n in ("0", "2", "4", "5", "7") if f"{n}.dequant" in names} == quantized
        assert quantized == {n for n, _ in ranking[float_layers:]}


def test_ranking_equals_the_formula_on_the_kept_inputs(net, data, folder):
    run(net, Counting(data, 9), folder, data)
    record = read_record(folder / "record.txt").layers
    ranking = dict(json.loads((folder / "out" / RANKING).read_text()))
    # Layer "2" reads what the fake-quantised layer "0" computes from float activations.
    w0 = net[0].weight.detach().double().numpy()
    s0 = np.array(record["0"].scale_w).reshape(-1, 1, 1, 1)
    fake0 = torch.tensor(np.clip(np.round(w0 / s0), -128, 127) * s0, dtype=torch.float32)
    x = torch.relu(nn.functional.conv2d(data, fake0, net[0].bias)).detach()
    entry = record["2"]
    codes = torch.clip(torch.round(x / entry.scale_d) + entry.offset_d, -128, 127) - entry.offset_d
    s2 = torch.tensor(entry.scale_w).reshape(-1, 1, 1, 1)
    q2 = torch.clip(torch.round(net[2].weight / s2), -128, 127) * s2
    step = s2.reshape(-1) * entry.scale_d
    b2 = torch.round(net[2].bias / step) * step
    with torch.no_grad():
        y0 = nn.functional.conv2d(x, net[2].weight, net[2].bias).double().reshape(-1)
        y1 = nn.functional.conv2d(codes * entry.scale_d, q2, b2).double().reshape(-1)
    expected = 0.5 + 0.5 * float(y0 @ y1 / math.sqrt(float(y0 @ y0) * float(y1 @ y1)))
    assert ranking["2"] == pytest.approx(expected, abs=1e-6)


def test_users_files_and_model_stay_as_they_were(net, data, folder):
    create_quant_config(str(folder / "config.json"), net, (data,))
    (folder / "out/deploy_old").mkdir(parents=True)
    (folder / "out/my_deploy_notes.txt").write_text("mine")
    config = (folder / "config.json").read_bytes()
    weights = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters()))
    run(net, Counting(data, 0), folder, data)
    assert (folder / "config.json").read_bytes() == config
    after = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters()))
    assert after.digest() == weights.digest()
    assert (folder / "out/deploy_old").is_dir()
    assert (folder / "out/my_deploy_notes.txt").read_text() == "mine"
    assert not [p for p in (folder / "out").iterdir() if p.name.startswith((".", "temp"))]


def test_final_config_reproduces_the_record(net, data, folder):
    run(net, Counting(data, 3), folder, data)
    record = (folder / "record.txt").read_bytes()
    original = json.loads((folder / "config.json").read_text())
    final = json.loads((folder / "out" / FINAL).read_text())
    differing = {k for k in final if final[k] != original[k]}
    assert len(differing) == 2
    for name in differing:
        assert {**final[name], "quant_enable": True} == original[name]
    quantize_model(
        str(folder / "out" / FINAL), str(folder / "m.onnx"), str(folder / "again.txt"), net, (data,)
    )(data)
    assert (folder / "again.txt").read_bytes() == record


def test_numpy_values_are_coerced(net, data, folder):
    class Numpy(Counting):
        def metric_eval(self, original, new):
            satisfied, loss = super().metric_eval(original, new)
            return [np.bool_(satisfied), np.float32(loss)]

    run(net, Numpy(data, 3), folder, data)
    assert sum(not on for on in history(folder)[-1]["roll_back_config"].values()) == 2


@pytest.mark.parametrize(
    ("returned", "error"),
    [
        (True, TypeError),
        ((True,), TypeError),
        ((True, "much"), TypeError),
        ((True, math.nan), ValueError),
        ((False, 0.0), ValueError),
    ],
)
def test_bad_judgements(net, data, folder, returned, error):
    class Bad(Counting):
        def metric_eval(self, original, new):
            return returned

    evaluator = Bad(data, 9)
    with pytest.raises(error, match="metric_eval"):
        run(net, evaluator, folder, data)
    assert evaluator.calls["calibration"] == 0
    assert [p.name for p in folder.iterdir()] == ["config.json", "config.json.workbench.json"] or {
        p.name for p in folder.iterdir()
    } <= {"config.json", "config.json.workbench.json"}


def test_an_evaluator_that_raises_leaves_nothing(net, data, folder):
    class Raising(Counting):
        def evaluate(self, model):
            if self.calls["evaluate"] == 1:
                raise KeyError("labels")
            return super().evaluate(model)

    with pytest.raises(KeyError, match="labels"):
        run(net, Raising(data, 3), folder, data)
    assert not (folder / "out").exists() or not list((folder / "out").iterdir())
    assert not (folder / "record.txt").exists()


def test_cancel_between_trials_leaves_nothing(net, data, folder):
    token = CancelToken()

    def on_event(event):
        if isinstance(event, TrialFinished) and event.phase == "search":
            token.cancel()

    with pytest.raises(Cancelled):
        run(net, Counting(data, 3), folder, data, on_event=on_event, cancel=token)
    assert not (folder / "record.txt").exists()


def test_events_tell_the_story(net, data, folder):
    events = []
    run(net, Counting(data, 3), folder, data, on_event=events.append)
    trials = [e for e in events if isinstance(e, TrialFinished)]
    assert [t.phase for t in trials] == ["original", "all", "search", "search", "search", "final"]
    assert [len(t.float_layers) for t in trials] == [5, 0, 3, 1, 2, 2]
    assert sum(isinstance(e, RankingKnown) for e in events) == 1
    brackets = [(e.low, e.high) for e in events if isinstance(e, BracketMoved)]
    assert brackets == [(1, 5), (1, 3), (2, 3), (2, 2), (2, 2)]


def test_a_final_miss_goes_on_with_the_next_layer(net, data, folder):
    class Strict(Counting):
        """Passes with two float layers while searching, but the real one needs three."""

        def metric_eval(self, original, new):
            if self.calls["calibration"] > 1:
                return new <= 2, float(new)
            return super().metric_eval(original, new)

    run(net, Strict(data, 3), folder, data)
    assert sum(not on for on in history(folder)[-1]["roll_back_config"].values()) == 3
    assert len(read_record(folder / "record.txt").layers) == 2


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"strategy": "Best"}, RuntimeError),
        ({"sensitivity": 3}, RuntimeError),
        ({"input_names": "x"}, TypeError),
        ({"dynamic_axes": {"x": {-1: "b"}}}, RuntimeError),
    ],
)
def test_bad_arguments(net, data, folder, change, error):
    with pytest.raises(error):
        run(net, Counting(data, 3), folder, data, **change)


def test_missing_config_and_wrong_evaluator(net, data, folder):
    with pytest.raises(RuntimeError, match="no.json"):
        accuracy_based_auto_calibration(
            net, Counting(data, 3), str(folder / "no.json"), "r.txt", "out/net", (data,)
        )
    with pytest.raises(RuntimeError, match="model_evaluator"):
        run(net, object(), folder, data)
