"""Fine-tuning, 2:4 sparsity and combined compression as trainings of a project."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import warm
from job_waiting import wait
from onnx import numpy_helper
from studio_models import make_data, make_net, make_training, slow_training
from torch import nn

from workbench.engine.errors import WrongState
from workbench.studio import Project, Session, open_session
from workbench.studio.errors import JobFailed
from workbench.studio.kept_weights import read_weights_kept
from workbench.studio.masks import NARROW, OFF, read_masks
from workbench.studio.workspace import Workspace


def open_live(folder: Path, **options: Any) -> Session:
    options.setdefault("train", make_training())
    return open_session(make_net(), data=make_data(), project=folder, threads=1, **options)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Session]:
    session = open_live(tmp_path / "p")
    yield session
    session.dispose()


def weights(session: Session, method: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(
        session.project.weights_of(method), weights_only=True
    )
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def accuracy(path: str) -> float:
    """Of a file on the evaluation data, computed here."""
    runtime = ort.InferenceSession(path)
    hits = [
        np.argmax(runtime.run(None, {runtime.get_inputs()[0].name: x.numpy()})[0], axis=1)
        == y.numpy()
        for x, y in make_data()
    ]
    return float(np.concatenate(hits).mean())


def initializers(path: str) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def zeros_in_fours(weight: np.ndarray) -> bool:
    """Whether every whole group of four inputs has two zeros; [outputs, inputs, ...]."""
    for start in range(0, weight.shape[1] - 3, 4):
        if ((weight[:, start : start + 4] != 0).sum(axis=1) > 2).any():
            return False
    return True


# -- fine-tuning --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    session = open_live(tmp_path_factory.mktemp("finetuned") / "p")
    session.train("finetune", epochs=2, learning_rate=0.02)
    yield session
    session.dispose()


def test_fine_tuning_trains_all_of_the_float_model(finetuned: Session) -> None:
    training = finetuned.training
    assert training is not None and training.state == "finished"
    assert (training.layers, training.steps, training.metric_before) == (3, 12, 1.0)
    assert len(finetuned.curves.evaluations) == 2 and not len(finetuned.curves.clips)
    trained, before = weights(finetuned, "finetune"), make_net().state_dict()
    assert trained.keys() == before.keys(), "no quantiser among them"
    changed = {name for name in before if not torch.equal(before[name], trained[name])}
    assert {"conv1.weight", "bn1.running_mean", "fc.bias"} <= changed
    model = finetuned._manager.workspace.source.model  # type: ignore[union-attr]
    assert same(dict(model.state_dict()), before), "the model itself is as it was"
    assert finetuned.trials.iloc[-1]["n_float"] == 3


def test_export_of_the_fine_tuned_model(finetuned: Session) -> None:
    finetuned.export(method="finetune")
    files = {file.kind: file for file in finetuned.exports.files}
    assert files.keys() == {"float", "trained"}
    assert all(line.ok for line in finetuned.exports.parity), finetuned.exports.parity
    model = make_net()
    model.load_state_dict(weights(finetuned, "finetune"))
    x = make_data()[0][0]
    runtime = ort.InferenceSession(files["trained"].path)
    (found,) = runtime.run(None, {runtime.get_inputs()[0].name: x.numpy()})
    assert np.abs(found - model(x).detach().numpy()).max() < 1e-5
    assert files["trained"].metric == pytest.approx(accuracy(files["trained"].path))
    assert files["trained"].metric == pytest.approx(finetuned.training.metric)


def test_its_weights_become_the_projects_and_are_taken_back(tmp_path: Path) -> None:
    session = open_live(tmp_path / "p")
    session.evaluate()
    session.train("finetune", epochs=1, learning_rate=0.05)
    done, trained = session.training, weights(session, "finetune")
    trials, history = session.trials, session.history()
    session.set_flag(["conv2"], False)
    live = session._manager.workspace.live  # type: ignore[union-attr]
    beside = Workspace(Project.open(tmp_path / "p"), live)  # of a process that has it open, too
    assert not same(dict(beside.source.model.state_dict()), trained)
    session.use_weights()
    beside.follow_settings()
    assert same(dict(beside.source.model.state_dict()), trained)
    (kept,) = session.weights
    assert (kept.method, kept.metric) == ("finetune", done.metric)
    assert session.summary.metric_float == pytest.approx(done.metric)
    assert session.training is None, "it was of other weights"
    assert session.trials["kind"].tolist() == ["float"], "the others were, too"
    assert not session.layers["quant_enable"][1], "the table stays"
    assert str(session.project.folder / "weights" / kept.file) in session.script()
    session.evaluate()  # quantises what was fine-tuned
    quantised = session._manager.workspace.source.model  # type: ignore[union-attr]
    assert same(dict(quantised.state_dict()), trained)
    session.dispose()

    again = open_live(tmp_path / "p")  # and in the next process
    assert again.weights == (kept,)
    again.take_back_weights()
    assert again.weights == () and again.summary.metric_float == 1.0
    assert again.training is not None and again.training.metric == done.metric
    assert again.trials.equals(trials) and again.history().equals(history), "and all results"
    with pytest.raises(WrongState, match="came with"):
        again.take_back_weights()
    again.use_weights(again.project.weights_of("finetune"))
    assert again.summary.metric_float == pytest.approx(done.metric)
    other = make_net(5)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(JobFailed, match="of another model"):
        again.use_weights(tmp_path / "other.pth")
    assert len(again.weights) == 1
    again.dispose()


def test_weights_that_cannot_be_used(live: Session) -> None:
    with pytest.raises(JobFailed, match="no finished training"):
        live.use_weights()
    live.train("qat", epochs=1)
    with pytest.raises(JobFailed, match="changes more than the weights"):
        live.use_weights()
    rows = [{"file": "../../x.safetensors"}, {"file": "0123456789abcdef.safetensors"}, 5]
    assert [one.file for one in read_weights_kept(rows)] == ["0123456789abcdef.safetensors"]


def test_fine_tuning_without_labels_learns_nothing(tmp_path: Path) -> None:
    session = open_session(make_net(), data=make_data(labels=False), project=tmp_path, threads=1)
    with pytest.raises(JobFailed, match="needs labels"):
        session.train("finetune", epochs=1)
    session.dispose()


def test_a_frozen_model(tmp_path: Path) -> None:
    net = make_net().requires_grad_(False)
    session = open_session(
        net, data=make_data(), project=tmp_path, threads=1, train=make_training()
    )
    with pytest.raises(JobFailed, match="no parameter of the model is trainable"):
        session.train("finetune", epochs=1)
    session.dispose()


class NoLayers(nn.Module):
    """Nothing in it can be quantised; it can be fine-tuned all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) @ self.table


def test_a_model_without_a_layer_to_quantise(tmp_path: Path) -> None:
    session = open_session(
        NoLayers(), data=make_data(), project=tmp_path, threads=1, train=make_training()
    )
    session.train("finetune", epochs=1)
    assert session.training is not None and session.training.state == "finished"
    session.dispose()


# -- 2:4 sparsity -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    session = open_live(tmp_path_factory.mktemp("sparse") / "p")
    session.set_flag(["conv2", "fc"], True, "prune_enable")
    session.train("sparse", epochs=2, update_freq=4)
    yield session
    session.dispose()


def test_which_layers_have_a_mask(sparse: Session) -> None:
    training = sparse.training
    assert training is not None and training.state == "finished"
    assert [(row.layer, row.reason) for row in training.masks] == [
        ("conv1", OFF), ("conv2", ""), ("fc", ""),
    ]  # fmt: skip
    # Six inputs: two of four stay, and the tail of two.
    assert [row.density for row in training.masks] == pytest.approx([1.0, 4 / 6, 0.5])
    assert training.metric_before < 1.0 == sparse.summary.metric_float
    before, after = sparse.masked_weights("fc")
    assert before.shape == (4, 8) and np.array_equal(after[after != 0], before[after != 0])
    assert zeros_in_fours(after) and not zeros_in_fours(before)
    assert sparse.masked_weights("conv1") is None
    assert "update_freq: 4" in (sparse.project.folder / "sparse.cfg").read_text()
    assert (sparse.project.folder / "sparse.record.txt").read_text().count("selective_prune {") == 2


def test_a_mask_that_takes_nothing() -> None:
    rows = [{"layer": "a", "density": 1.0, "reason": NARROW}, {"layer": "b"}, "c"]
    assert [row.layer for row in read_masks(rows)] == ["a"]
    assert read_masks({"a": 1}) == ()


def test_export_of_the_sparse_model(sparse: Session) -> None:
    sparse.export(method="sparse")
    files = {file.kind: file for file in sparse.exports.files}
    assert files.keys() == {"float", "compressed", "compressed_deploy"}
    lines = sparse.exports.parity
    assert all(line.ok for line in lines), lines
    assert sum("zeros of 2 masked layers" in line.text for line in lines) == 2
    for kind in ("compressed", "compressed_deploy"):
        found = initializers(files[kind].path)
        assert zeros_in_fours(found["conv2.weight"]) and zeros_in_fours(found["fc.weight"])
        assert (found["conv1.weight"] != 0).all()
        assert files[kind].metric == pytest.approx(accuracy(files[kind].path))
        assert files[kind].metric == pytest.approx(sparse.training.metric)


def test_the_sparse_weights_become_the_projects(tmp_path: Path) -> None:
    session = open_live(tmp_path / "p")
    session.train("sparse", epochs=1)
    session.use_weights()
    model = session._manager.workspace.source.model  # type: ignore[union-attr]
    assert zeros_in_fours(model.conv2.weight.detach().numpy())
    assert session.summary.metric_float == pytest.approx(session.weights[-1].metric)
    session.dispose()


# -- combined -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def combined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    session = open_live(tmp_path_factory.mktemp("combined") / "p")
    session.set_flag(["conv1"], False, "retrain_enable")
    session.set_flag(["conv2"], True, "prune_enable")
    session.train("compressed", epochs=2)
    yield session
    session.dispose()


def test_pruned_and_quantised_layer_by_layer(combined: Session) -> None:
    training = combined.training
    assert training is not None and training.state == "finished"
    assert training.layers == 2
    assert [row.layer for row in training.masks if row.density < 1] == ["conv2"]
    assert sorted(set(combined.curves.clips["layer"])) == ["conv2", "fc"]
    record = (combined.project.folder / "compressed.record.txt").read_text()
    assert 'key: "conv1"' not in record and 'key: "fc"' in record
    assert record.count("selective_prune {") == 1
    trial = combined.trials.iloc[-1]
    assert trial["float_layers"] == ("conv1",) and trial["size"] < combined.summary.size_float


def test_export_of_the_combined_network(combined: Session) -> None:
    combined.export(method="compressed")
    files = {file.kind: file for file in combined.exports.files}
    assert {"float", "fake_quant", "deploy"} <= files.keys()
    assert all(line.ok for line in combined.exports.parity), combined.exports.parity
    deployed = initializers(files["deploy"].path)
    assert deployed["conv2.weight"].dtype == np.int8 and zeros_in_fours(deployed["conv2.weight"])
    assert deployed["conv1.weight"].dtype == np.float32
    assert files["fake_quant"].metric == pytest.approx(accuracy(files["fake_quant"].path))


def test_channels_go_and_the_rest_is_quantised(live: Session) -> None:
    live.set_flag(["conv1"], True, "prune_enable")
    live.set_option(["conv1"], "prune_ratio", 0.5)
    live.train("compressed", epochs=1, sparsity="channels", ascend_optimized=False)
    training = live.training
    assert training is not None and training.masks == ()
    assert weights(live, "compressed")["conv2.quant_module.replaced_module.weight"].shape[1] == 3
    costs = live.trials.iloc[-1][["size", "bops"]].astype(float)
    live.export(method="compressed")
    files = {file.kind: file for file in live.exports.files}
    assert initializers(files["deploy"].path)["conv1.weight"].shape == (3, 3, 3, 3)
    assert all(line.ok for line in live.exports.parity), live.exports.parity
    qdq = live.project.exports / "Net_compressed_qdq_model.onnx"
    assert qdq.exists()

    live.train("compressed", epochs=1, sparsity="channels", ascend_optimized=False, quantise=False)
    floats = live.trials.iloc[-1][["size", "bops"]].astype(float)
    # 3 channels of 6: conv1 81 + 3, its norm 6, conv2 216 + 8, fc 32 + 4 parameters of 4 bytes.
    assert floats["size"] == 4 * (81 + 3 + 6 + 216 + 8 + 32 + 4)
    assert floats["bops"] == 16 * costs["bops"], "32 × 32 bits, not 8 × 8"
    live.export(method="compressed")
    kinds = {file.kind for file in live.exports.files}
    assert kinds == {"float", "compressed", "compressed_deploy"}
    assert not qdq.exists(), "the file of the quantised one is gone"


# -- all of them --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["finetune", "compressed"])
def test_stopped_and_resumed_is_the_same(tmp_path: Path, method: str) -> None:
    more = {"update_freq": 3} if method != "finetune" else {}
    arguments: dict[str, Any] = {"epochs": 1, "learning_rate": 0.01, "checkpoint_every": 5, **more}
    whole = open_live(tmp_path / "whole", train=make_training(20))
    whole.train(method, **arguments)
    session = open_live(tmp_path / "p", train=slow_training(20))
    session.train(method, **arguments, wait=False)
    wait(session, lambda: len(session.curves.steps) >= 2)
    session.cancel()
    wait(session, lambda: session.job is not None and not session.job.active)
    assert session.training is not None and session.training.state == "stopped"
    assert 0 < session.training.checkpoints[0].step < 20
    session.dispose()
    again = open_live(tmp_path / "p", train=make_training(20))
    again.resume_training()
    assert again.training is not None and again.training.state == "finished"
    assert same(weights(again, method), weights(whole, method))
    assert again.training.metric == whole.training.metric
    assert again.training.masks == whole.training.masks
    if method != "finetune":
        records = [s.project.record_of(method).read_bytes() for s in (again, whole)]
        assert records[0] == records[1]
    again.dispose()
    whole.dispose()


def test_the_scripts_train_to_the_same_weights(
    finetuned: Session, combined: Session, tmp_path: Path
) -> None:
    """Each in a folder of its own, one after the other in one fresh process."""
    sessions = {"finetune": finetuned, "compressed": combined}
    for method, session in sessions.items():
        script = session.script()
        assert f"session.train(method='{method}'" in script
        assert script == (session.project.folder / "log.py").read_text()
        filled = script.replace(
            "train = ...  # fill in: the list with the training data", "train = make_training()"
        ).replace("model = ...  # fill in: build your Net here", "model = make_net()")
        assert "...  # fill in" not in filled
        (tmp_path / method).mkdir()
        (tmp_path / method / "log.py").write_text(
            f"from studio_models import make_net, make_training\n{filled}", encoding="utf-8"
        )
    run = (
        "import os, runpy\n"
        f"for method in {list(sessions)!r}:\n"
        f"    os.chdir(os.path.join({str(tmp_path)!r}, method))\n"
        "    runpy.run_path('log.py')\n"
    )
    support = str(Path(__file__).parents[1] / "support")
    warm.run(["-c", run], env={**os.environ, "PYTHONPATH": support}, check=True)
    for method, session in sessions.items():
        folder = tmp_path / method / "reproduced" / "training"
        again = torch.load(folder / f"{method}.pth", weights_only=True)
        assert same(again, weights(session, method)), method
