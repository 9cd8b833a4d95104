"""What ``accuracy_based_auto_calibration`` offers beyond the reference (chapter 20 section 9)."""

import json

import numpy as np
import pytest
import torch
from search_case import LAYERS, Whole, case, data, names, search
from torch import nn

from workbench.engine import CancelToken, accuracy_based_auto_calibration, create_quant_config
from workbench.engine.errors import Cancelled
from workbench.engine.events import TrialFinished
from workbench.engine.files.history import read_history
from workbench.engine.graph.capture import capture
from workbench.engine.search.model_evaluator import ModelEvaluator
from workbench.engine.search.sensitivity import SensitivityBase

DAMAGE, MAX_LOSS = {"2": 0.02, "8": 0.03}, 0.01
RANKING = "accuracy_based_auto_calibration_ranking_information.json"
FINAL = "accuracy_based_auto_calibration_final_config.json"
HISTORY = "amct_log/accuracy_based_auto_calibration_record.json"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    create_quant_config("config.json", case()[0], (data(),))
    return tmp_path


def run(evaluator, **options):
    accuracy_based_auto_calibration(
        case()[0], evaluator, "config.json", "record.txt", "out/net", (data(),), **options
    )


def final_floats(folder):
    config = json.loads((folder / "out" / FINAL).read_text())
    return {name for name in LAYERS if not config[name]["quant_enable"]}


def test_dumped_inputs_have_the_layout_of_the_reference(folder):
    run(Whole({}, MAX_LOSS), dump_inputs=True, keep_temp=True)
    (temporary,) = [p for p in (folder / "out").iterdir() if p.name.startswith("temp")]
    assert temporary.name[4:].isdigit() and len(temporary.name) == 24
    assert (temporary / "modified_model.onnx").exists()
    raw = (temporary / "0_activation_batch1.bin").read_bytes()
    head = np.frombuffer(raw, "<f4", 4)
    assert head.tolist() == [0.0, 2.0, 4.0, 6.0]
    values = np.frombuffer(raw, "<f4", offset=16).reshape(4, 6)
    assert np.array_equal(values, data().numpy())
    written = {p.name for p in temporary.glob("*.bin")}
    assert written == {f"{name}_activation_batch1.bin" for name in LAYERS}


def test_the_ranking_is_the_formula_on_the_dumped_inputs(folder):
    run(Whole({}, MAX_LOSS), dump_inputs=True, keep_temp=True)
    (temporary,) = [p for p in (folder / "out").iterdir() if p.name.startswith("temp")]
    ranking = dict(json.loads((folder / "out" / RANKING).read_text()))
    from workbench.engine.files.record import read_record

    record, net = read_record("record.txt"), case()[0]
    for name in LAYERS:
        raw = (temporary / f"{name}_activation_batch1.bin").read_bytes()
        x = torch.from_numpy(np.frombuffer(raw, "<f4", offset=16).reshape(4, 6).copy()).double()
        entry, layer = record.layers[name], net.get_submodule(name)
        s_w = torch.tensor(entry.scale_w).double().reshape(-1, 1)
        q = torch.clamp(torch.round(x / entry.scale_d) + entry.offset_d, -128, 127) - entry.offset_d
        w = torch.clamp(torch.round(layer.weight.double() / s_w), -128, 127)
        step = s_w.reshape(-1) * entry.scale_d
        y1 = (q @ w.T + torch.round(layer.bias.double() / step)) * step
        y0 = x @ layer.weight.double().T + layer.bias.double()
        y0, y1 = y0.detach(), y1.detach()
        a, b = y0.reshape(-1), y1.reshape(-1)
        expected = float(0.5 + 0.5 * (a @ b) / (a.norm() * b.norm()))
        assert ranking[name] == pytest.approx(expected, abs=1e-5)
    assert list(ranking.values()) == sorted(ranking.values())


def test_nothing_temporary_stays_not_even_after_an_error(folder):
    class Failing(Whole):
        def evaluate(self, model):
            if names(model):
                raise KeyError("labels")
            return super().evaluate(model)

    with pytest.raises(KeyError):
        run(Failing(DAMAGE, MAX_LOSS), dump_inputs=True)
    assert not list((folder / "out").iterdir())
    run(Whole(DAMAGE, MAX_LOSS), dump_inputs=True)
    assert not [p for p in (folder / "out").iterdir() if p.name.startswith(("temp", "."))]


def test_a_project_folder_remembers(folder):
    run(Whole(DAMAGE, MAX_LOSS), project="project")
    first = {p: (folder / p).read_bytes() for p in ("record.txt", HISTORY, f"out/{FINAL}")}
    run(Whole(DAMAGE, MAX_LOSS, "calls"), project="project")
    calls = [json.loads(line)[0] for line in (folder / "calls").read_text().splitlines()]
    assert calls == ["calibration"]
    assert {p: (folder / p).read_bytes() for p in first} == first


@pytest.mark.parametrize(
    ("strategy", "floats"),
    [("BinarySearch", 3), ("BinarySearchVerified", 3), ("Greedy", 3), ("Recover", 2)],
)
def test_strategies_by_name(folder, strategy, floats):
    run(Whole(DAMAGE, MAX_LOSS), strategy=strategy)
    assert len(final_floats(folder)) == floats and {"2", "8"} <= final_floats(folder)
    entries = read_history((folder / HISTORY).read_text())
    assert len((folder / f"{HISTORY}l").read_text().splitlines()) == len(entries)
    assert all(entries[0]["roll_back_config"].values())
    last = {name for name, on in entries[-1]["roll_back_config"].items() if not on}
    assert last == final_floats(folder)


def test_a_cancelled_search_leaves_its_best_configuration(folder):
    token = CancelToken()

    def on_event(event):
        if isinstance(event, TrialFinished) and event.phase == "search" and event.satisfied:
            token.cancel()

    with pytest.raises(Cancelled):
        run(Whole(DAMAGE, MAX_LOSS), on_event=on_event, cancel=token)
    assert {"2", "8"} <= final_floats(folder)
    assert (folder / HISTORY).exists() and (folder / "out" / RANKING).exists()
    assert not list((folder / "out").glob("*.onnx"))


def test_a_ranking_that_is_not_needed_is_not_written(folder):
    run(Whole({}, MAX_LOSS), write_ranking="needed")
    assert not (folder / "out" / RANKING).exists()


@pytest.mark.parametrize("sensitivity", ["CosineSimilarity", "SQNR", "MSE", "EndToEnd"])
def test_every_sensitivity_puts_the_worst_layer_first(sensitivity):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).eval()
    with torch.no_grad():
        # The second layer reads a channel that hides the others in one step, and ignores it.
        net[0].bias[0] = 1e3
        net[2].weight[:, 0] = 0.0
    from workbench.engine.files.config import default_config
    from workbench.engine.search.auto_calibration import search_configuration

    captured = capture(net, (data(),))
    config = default_config(captured.layers)
    result = search_configuration(
        net, captured, config, Whole({}, MAX_LOSS), sensitivity=sensitivity
    )
    assert next(iter(result.ranking)) == "2" and set(result.ranking) == {"0", "2"}


def test_end_to_end_compares_the_networks_outputs():
    seen = []

    class Keep(SensitivityBase):
        def compare(self, data, other):
            seen.append((data, other))
            return 0.5

    from workbench.engine.search.sensitivity import EndToEndSensitivity

    class EndToEnd(EndToEndSensitivity, Keep):
        compare = Keep.compare

    result = search(Whole({}, MAX_LOSS), sensitivity=EndToEnd())
    with torch.no_grad():
        wanted = case()[0](data()).reshape(-1).numpy()
    assert len(seen) == len(LAYERS)
    for y, other in seen:
        assert np.allclose(y, wanted, atol=1e-6)
        assert 0 < np.abs(y - other).max() < 0.1
    assert list(result.ranking) == list(LAYERS), "ties keep the order of the configuration"


def test_both_backends_give_the_same_outputs():
    class Outputs(Whole):
        def __init__(self):
            super().__init__(DAMAGE, MAX_LOSS)
            self.outputs = []

        def evaluate(self, model):
            with torch.no_grad():
                self.outputs.append(model(data()))
            return 1.0 - 0.02 * (len(self.outputs) in (2, 4))

    found = {}
    for backend in ("torch", "onnx"):
        evaluator = Outputs()
        result = search(evaluator, evaluate_backend=backend)
        found[backend] = evaluator.outputs, result.config.digest()
    assert found["torch"][1] == found["onnx"][1]
    pairs = list(zip(found["torch"][0], found["onnx"][0], strict=True))
    assert len(pairs) >= 3
    for a, b in pairs:
        assert float((a - b).abs().max()) <= 1e-4 * float(a.abs().max())


def test_a_layer_that_calibration_never_reaches_stays_float():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x, both=True):
            return self.b(self.a(x)) if both else self.a(x)

    class OnlyA(Whole):
        def calibration(self, model):
            model(data(), both=False)

    from workbench.engine.files.config import default_config
    from workbench.engine.search.auto_calibration import search_configuration

    torch.manual_seed(0)
    net = Branches().eval()
    captured = capture(net, (data(),))
    result = search_configuration(
        net, captured, default_config(captured.layers), OnlyA({}, MAX_LOSS)
    )
    assert result.satisfied and result.config.enabled() == ("a",)
    assert result.ranking["b"] == 1.0


def test_a_model_that_cannot_be_copied_is_one_clear_error(folder):
    net = nn.Sequential(nn.Linear(6, 6))
    net.generator = (i for i in range(3))
    with pytest.raises(RuntimeError, match="cannot be copied"):
        accuracy_based_auto_calibration(
            net, Whole({}, MAX_LOSS), "config.json", "r.txt", "out/net", (data(),)
        )


def test_the_users_model_is_not_what_is_evaluated(folder):
    class Rough(Whole):
        def evaluate(self, model):
            model.train()
            for buffer in model.buffers():
                buffer.zero_()
            return super().evaluate(model)

    net = case()[0]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run(Rough(DAMAGE, MAX_LOSS))
    assert not net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_balancer_is_searched_and_with_compat_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["4"]["dmq_balancer_param"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    run(Whole(DAMAGE, MAX_LOSS), project="project")
    from workbench.engine.files.record import read_record

    found = read_record("record.txt")
    assert found.layers["4"].tensor_balance_factor
    run(Whole(DAMAGE, MAX_LOSS), project="project")
    assert read_record("record.txt") == found
    sidecar = folder / "config.json.workbench.json"
    sidecar.write_text(json.dumps({"compat": True}))
    with pytest.raises(RuntimeError, match="balancer"):
        run(Whole(DAMAGE, MAX_LOSS))


def test_an_unmodified_model_evaluator_serves(folder):
    (folder / "data").mkdir()
    for number in range(3):
        (data() + number).numpy().tofile(folder / "data" / f"{number}.bin")
    run(ModelEvaluator(f"{folder}/data/", "x:4,6", "float32"), project="project")
    assert (folder / "out/net_deploy_model.onnx").exists() and not final_floats(folder)


def test_a_float16_network_is_searched():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(),
        nn.Linear(64, 3),
    ).eval().half()  # fmt: skip
    x = torch.randn(2, 3, 8, 8).half()

    class Half(Whole):
        def calibration(self, model):
            model(x)

        def evaluate(self, model):
            with torch.no_grad():
                assert model(x).dtype == torch.float16
            return 1.0 - 0.02 * ("0" in names(model))

    from workbench.engine.files.config import default_config
    from workbench.engine.search.auto_calibration import search_configuration

    captured = capture(net, (x,))
    result = search_configuration(
        net, captured, default_config(captured.layers), Half({}, MAX_LOSS), strategy="Recover"
    )
    assert result.trials[-1].float_layers == ("0",)
    assert set(result.ranking) == {"0", "3", "5"}
