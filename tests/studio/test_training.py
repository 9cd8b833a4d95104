"""The training job: what it keeps, how it stops, resumes, exports, and is written as a script."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import warm
from job_waiting import wait
from studio_models import make_data, make_net, make_training, slow_training
from torch import nn

from workbench.engine.errors import Cancelled, WrongState, WrongType, WrongValue
from workbench.studio import DataSpec, Project, ProjectSettings, Session, SourceSpec, open_session
from workbench.studio.errors import JobFailed
from workbench.studio.jobs import WorkerManager
from workbench.studio.metrics import Batch
from workbench.studio.project import TrainSpec
from workbench.studio.training_data import FirstBatches, Shuffled, TrainingData, UserLoader
from workbench.studio.training_feed import TrainingFeed


def open_live(folder: Path, **options: Any) -> Session:
    options.setdefault("train", make_training())
    return open_session(make_net(), data=make_data(), project=folder, threads=1, **options)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Session]:
    session = open_live(tmp_path / "p")
    yield session
    session.dispose()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A finished training of two epochs, with checkpoints every fourth step."""
    session = open_live(tmp_path_factory.mktemp("trained") / "p")
    session.set_flag(["fc"], False, "retrain_enable")
    session.train(epochs=2, learning_rate=0.01, checkpoint_every=4)
    yield session
    session.dispose()


def test_what_a_training_leaves_behind(trained: Session) -> None:
    training, curves, folder = trained.training, trained.curves, trained.project.folder
    assert training is not None
    assert (training.state, training.steps, training.layers) == ("finished", 12, 2)
    assert training.loss == "cross-entropy with the labels"
    assert curves.steps["step"].iloc[-1] == 12
    assert curves.steps["learning_rate"].iloc[-1] < 0.01
    assert curves.evaluations["step"].tolist() == [6, 12]
    assert curves.evaluations["metric"].max() == pytest.approx(training.metric)
    assert sorted(set(curves.clips["layer"])) == ["conv1", "conv2"]
    last = curves.clips[curves.clips["step"] == 12].set_index("layer")
    assert (last["low"] < last["high"]).all()
    assert [row.step for row in training.checkpoints] == [12, 8]
    config = json.loads((folder / "qat.json").read_text())
    assert config["batch_num"] == 2
    assert [config[name]["retrain_enable"] for name in ("conv1", "conv2", "fc")] == [
        True, True, False,
    ]  # fmt: skip
    record = (folder / "qat.record.txt").read_text()
    assert 'key: "conv1"' in record and 'key: "fc"' not in record
    trial = trained.trials.iloc[-1]
    assert (trial["kind"], trial["metric"]) == ("trained", pytest.approx(training.metric))
    assert trial["float_layers"] == ("fc",)


def test_the_users_model_is_as_it_was(trained: Session) -> None:
    model = trained._manager.workspace.source.model  # type: ignore[union-attr]
    fresh = make_net().state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())


def test_another_window_sees_the_same(trained: Session) -> None:
    other = Session(Project.open(trained.project.folder))
    assert other.training == trained.training
    for name in ("steps", "evaluations", "clips"):
        a, b = getattr(other.curves, name), getattr(trained.curves, name)
        assert a.equals(b)
    assert not other.training.can_resume
    with pytest.raises(WrongState, match="no stopped training"):
        trained.resume_training()
    other.dispose()


def test_export_of_the_trained_network(trained: Session) -> None:
    trained.export(method="qat")
    result = trained.exports
    assert result.method == "qat"
    assert all(line.ok for line in result.parity), result.parity
    files = {file.kind: file for file in result.files}
    assert {"float", "fake_quant", "deploy"} <= files.keys()
    runtime = ort.InferenceSession(files["fake_quant"].path)
    right = count = 0
    for x, y in make_data():  # accuracy in ONNX Runtime, computed here
        output = runtime.run(None, {runtime.get_inputs()[0].name: x.numpy()})[0]
        right += int((np.argmax(output, axis=1) == y.numpy()).sum())
        count += len(y)
    assert files["fake_quant"].metric == pytest.approx(right / count)
    assert files["fake_quant"].metric == pytest.approx(trained.training.metric, abs=0.07)
    assert "_qat_" in files["deploy"].path


def test_nothing_to_export_before_a_training(live: Session) -> None:
    with pytest.raises(JobFailed, match="no training with method 'qat'"):
        live.export(method="qat")


def record_of(session: Session, method: str = "qat") -> bytes:
    return session.project.record_of(method).read_bytes()


def test_stopped_and_resumed_is_the_same(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"epochs": 1, "learning_rate": 0.01, "checkpoint_every": 10}
    whole = open_live(tmp_path / "whole", train=make_training(40))
    whole.train(**arguments)
    session = open_live(tmp_path / "p", train=slow_training(40))
    session.train(**arguments, wait=False)
    wait(session, lambda: len(session.curves.steps) >= 2)
    session.cancel()
    wait(session, lambda: session.job is not None and not session.job.active)
    assert session.training is not None
    assert session.training.state == "stopped"
    stopped_at = session.training.checkpoints[0].step
    assert 0 < stopped_at < 40
    session.dispose()

    again = open_live(tmp_path / "p", train=make_training(40))
    assert again.training is not None and again.training.can_resume
    again.resume_training()
    assert again.training.state == "finished"
    assert len(again.training.jobs) == 2
    assert record_of(again) == record_of(whole)
    assert again.training.metric == whole.training.metric
    steps = again.curves.steps["step"].tolist()
    assert steps == sorted(set(steps))
    for one in (whole, again):
        one.dispose()


@pytest.mark.slow  # two worker processes; tests/engine/flows/test_training.py kills one quickly
@pytest.mark.parametrize("method", ["qat", "compressed"])
def test_a_killed_worker_loses_nothing(
    tmp_path: Path, method: str, open_worker: Callable[..., Session]
) -> None:
    settings = ProjectSettings(
        "net", SourceSpec("python", "studio_models:make_net"),
        DataSpec("python", "studio_models:make_data", 8, 2),
        train=TrainSpec("python", "studio_models:slow_training"),
    )  # fmt: skip
    Project.create(tmp_path / "p", settings=settings).close()
    session = open_worker()
    assert isinstance(session._manager, WorkerManager)
    session.start("open", wait=True)
    session.train(method, epochs=1, learning_rate=0.01, checkpoint_every=5, wait=False)
    wait(session, lambda: bool(session.training and session.training.checkpoints[1:]))
    from workbench.studio.jobs import worker_process

    pid = worker_process(session.project.store)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait(session, lambda: session.job is not None and not session.job.active)
    assert session.job.error is not None and "killed" in session.job.error.summary
    assert session.training is not None and session.training.state == "failed"
    session.resume_training()
    assert session.training.state == "finished"

    whole = open_live(tmp_path / "whole", train=make_training(40))
    whole.train(method, epochs=1, learning_rate=0.01, checkpoint_every=5)
    assert record_of(session, method) == record_of(whole, method)
    whole.dispose()
    session.dispose()


def test_the_script_trains_to_the_same_record(trained: Session, tmp_path: Path) -> None:
    script = trained.script()
    assert "session.train(" in script
    assert "retrain_enable" in script
    assert script == (trained.project.folder / "log.py").read_text()
    filled = script.replace(
        "train = ...  # fill in: the list with the training data", "train = make_training()"
    ).replace("model = ...  # fill in: build your Net here", "model = make_net()")
    assert filled.count("...  # fill in") == 0
    (tmp_path / "log.py").write_text(
        f"from studio_models import make_net, make_training\n{filled}", encoding="utf-8"
    )
    support = str(Path(__file__).parents[1] / "support")
    warm.run(["log.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": support}, check=True)
    again = tmp_path / "reproduced" / "training" / "qat.record.txt"
    assert again.read_bytes() == record_of(trained)


def test_the_script_forgets_a_training_of_another_table(trained: Session) -> None:
    trained.set_flag(["fc"], True, "retrain_enable")
    assert "session.train(" not in trained.script()
    trained.undo()
    assert "session.train(" in trained.script()


def test_distillation(live: Session) -> None:
    live.train("distill", epochs=2)
    training = live.training
    assert training is not None and training.state == "finished"
    groups = json.loads((live.project.folder / "distill.json").read_text())["distill_group"]
    assert training.steps == len(groups) * 2 * 6
    assert live.curves.steps["step"].iloc[-1] == training.steps
    live.export(method="distill")
    assert all(line.ok for line in live.exports.parity), live.exports.parity
    assert 'key: "conv1"' in (live.project.folder / "distill.record.txt").read_text()
    with pytest.raises(JobFailed, match="takes no recipe"):
        live.train("distill", recipe=lambda model: None)


# -- loss and data ------------------------------------------------------------------------------


def test_without_labels_it_learns_from_the_float_outputs(tmp_path: Path) -> None:
    session = open_session(make_net(), data=make_data(labels=False), project=tmp_path, threads=1)
    session.train(epochs=1)
    assert session.training is not None
    assert session.training.loss == "distance to the float model's outputs"
    assert session.training.data == "16 calibration samples"
    with pytest.raises(JobFailed, match="needs labels"):
        session.train(epochs=1, loss="cross_entropy")
    session.dispose()


def test_training_data_from_an_npz(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    batches = make_training(4)
    x, labels = (torch.cat(parts).numpy() for parts in zip(*batches, strict=True))
    np.savez(tmp_path / "train.npz", pixels=x, labels=labels)
    session = open_live(tmp_path / "p", train=str(tmp_path / "train.npz"))
    (notice,) = session.summary.notices
    assert notice.startswith("train.npz: the array pixels is taken as the input")
    assert notice in caplog.text
    assert Project.open(tmp_path / "p").settings.train.kind == "npz"
    session.train(epochs=1, batch_size=8, samples=16)
    assert session.training is not None
    assert session.training.steps == 2
    assert session.training.data == "train.npz, 32 samples, 2 batches an epoch"
    assert session.summary.notices == (notice,), "a job does not take it away"
    session.dispose()
    np.savez(tmp_path / "named.npz", x=x, labels=labels)
    again = open_live(tmp_path / "p", train=str(tmp_path / "named.npz"))
    assert again.summary.notices == ()
    again.dispose()


def test_an_epoch_of_samples_in_memory() -> None:
    from workbench.studio.metrics import Batch

    batches = [Batch((torch.arange(4.0) + 4 * i,), torch.arange(4) + 4 * i) for i in range(3)]
    loader = Shuffled(batches, 5, seed=1)
    first = [(x.tolist(), y.tolist()) for (x,), y in loader]
    assert [len(x) for x, _ in first] == [5, 5]
    assert all(x == y for x, y in first), "samples keep their labels"
    seen = [value for x, _ in first for value in x]
    assert len(set(seen)) == 10
    assert [(x.tolist(), y.tolist()) for (x,), y in loader] == first, "an epoch is its number"
    loader.set_epoch(1)
    assert [(x.tolist(), y.tolist()) for (x,), y in loader] != first
    assert len(list(FirstBatches(loader, 1))) == len(FirstBatches(loader, 1)) == 1


def test_loaders_that_cannot_be_read_again() -> None:
    with pytest.raises(WrongType, match="once an epoch"):
        UserLoader(iter([torch.rand(2, 3)]), make_net())


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"method": "magic"}, JobFailed, "no method 'magic'"),
        ({"loss": "hinge"}, JobFailed, "no loss 'hinge'"),
        ({"epochs": 0}, WrongValue, "epochs is 0"),
        ({"speed": 3}, WrongValue, "no setting 'speed'"),
        ({"batch_size": 0, "samples": -1}, WrongValue, "batch_size is 0.*samples is -1"),
        ({"recipe": 5}, WrongType, "recipe is a int"),
        ({"recipe": print, "loop": print}, WrongValue, "recipe and loop are both given"),
        ({"recipe": "studio_models:make_net"}, JobFailed, "loading code is off"),
    ],
)
def test_refused(
    live: Session, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        live.train(**arguments)
    assert not (live.project.folder / "checkpoints").exists()


def test_no_layer_to_train(live: Session) -> None:
    live.set_flag(list(live.layers["name"]), False, "retrain_enable")
    with pytest.raises(JobFailed, match="off for every layer"):
        live.train()


def test_an_empty_loader(tmp_path: Path) -> None:
    session = open_live(tmp_path / "p", train=[])
    with pytest.raises(JobFailed, match="yields nothing"):
        session.train()
    session.dispose()


def test_a_loss_that_is_not_finite_names_the_layer(tmp_path: Path) -> None:
    def recipe(model: nn.Module) -> Any:
        def step(inner: nn.Module, batch: Any, index: int) -> torch.Tensor:
            if index == 2:
                with torch.no_grad():
                    dict(inner.named_parameters())[
                        "conv2.quant_module.acts_clip_max"
                    ].fill_(math.nan)  # fmt: skip
            return inner(batch[0]).square().mean()

        return step

    session = open_live(tmp_path / "p")
    with pytest.raises(JobFailed, match=r"conv2.*clip bound"):
        session.train(epochs=1, checkpoint_every=1, recipe=recipe)
    assert session.training is not None
    assert session.training.state == "failed"
    assert session.training.checkpoints[0].step == 2, "the last good one is kept"
    session.dispose()


# -- the user's own -----------------------------------------------------------------------------


class Module:
    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, target = batch
        return nn.functional.cross_entropy(self.net(x), target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=0.005)


def test_a_lightning_style_recipe(live: Session) -> None:
    live.train(epochs=1, recipe=Module)
    assert live.training is not None and live.training.state == "finished"
    assert live.training.loss == "the user's own recipe: Module"
    assert set(live.curves.steps["learning_rate"]) == {0.005}
    assert "recipe = ...  # fill in: Module" in live.script()
    live.train(epochs=1)
    assert set(live.curves.steps["learning_rate"]) != {0.005}, "an object is for one training"


def test_own_code_gets_plain_batches() -> None:
    """What a DataLoader of the same samples would yield."""
    x, y = torch.rand(4, 3), torch.arange(4)
    labelled = TrainingData(Shuffled([Batch((x,), y)], 2, 0), "")
    assert [[part.shape for part in item] for item in labelled.as_given()] == [[(2, 3), (2,)]] * 2
    (bare,) = TrainingData(Shuffled([Batch((x,))], 2, 0), "").limited(2).as_given()
    assert bare.shape == (2, 3)
    ((both, _),) = TrainingData(Shuffled([Batch((x, x), y)], 4, 0), "").as_given()
    assert [part.shape for part in both] == [(4, 3)] * 2


def test_a_loop_of_ones_own(tmp_path: Path) -> None:
    given = make_training()
    live = open_live(tmp_path / "p", train=given)

    def loop(model: nn.Module, loader: Any, report: Callable[..., None]) -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        assert loader is given
        for x, target in loader:
            loss = nn.functional.cross_entropy(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            report(loss)

    live.train(loop=loop)
    assert live.training is not None and live.training.state == "finished"
    assert live.training.steps == 6
    assert live.curves.steps["step"].iloc[-1] == 6

    def stopping(model: nn.Module, loader: Any, report: Callable[..., None]) -> None:
        live.cancel()
        for _ in range(2000):
            wait_a_moment()
            report(0.0)

    with pytest.raises(Cancelled):
        live.train(loop=stopping)
    live.dispose()


def wait_a_moment() -> None:
    import time

    time.sleep(0.005)


# -- events -------------------------------------------------------------------------------------


def test_steps_are_merged_and_milestones_are_not() -> None:
    from workbench.engine.events import ClipsMoved, Evaluated, TrainStep

    feed = TrainingFeed()
    feed.add(TrainStep(1, 9, 0, 4.0, 0.1))
    assert [event.step for event in feed.take()] == [1]  # type: ignore[attr-defined]
    for step, loss in ((2, 1.0), (3, 2.0), (4, 6.0)):
        feed.add(TrainStep(step, 9, 0, loss, 0.1))
        feed.add(ClipsMoved(step, (("a", -1.0, float(step)),)))
    assert feed.take() == [], "not due yet"
    feed.add(Evaluated(4, 0.5, True))
    assert feed.take() == [
        TrainStep(4, 9, 0, 3.0, 0.1), ClipsMoved(4, (("a", -1.0, 4.0),)), Evaluated(4, 0.5, True),
    ]  # fmt: skip
    feed.add(TrainStep(5, 9, 0, 1.0, 0.1))
    assert feed.take(everything=True) == [TrainStep(5, 9, 0, 1.0, 0.1)]
