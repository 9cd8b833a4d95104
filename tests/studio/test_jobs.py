"""Jobs in a thread of this process, on a live model."""

from __future__ import annotations

import _thread
import math
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import warm
from studio_models import make_data, make_net, slow_metric

from workbench.engine.errors import Cancelled, MissingFile, WorkbenchError, WrongValue
from workbench.engine.files.record import read_record
from workbench.studio import Project, Session, open_session
from workbench.studio.errors import JobActive, JobFailed
from workbench.studio.waiting import wait_for


@pytest.fixture
def live(tmp_path: Path) -> Session:
    return open_session(make_net(), data=make_data(), project=tmp_path / "p", threads=1)


def test_open_lists_the_layers_and_writes_the_configuration(live: Session) -> None:
    assert live.layers["name"].tolist() == ["conv1", "conv2", "fc"]
    assert live.layers["macs"].tolist() == [8 * 8 * 6 * 27, 3 * 3 * 8 * 54, 32]
    assert live.layers["weight_range"].iloc[2] == pytest.approx(
        float(np.ptp(make_net().fc.weight.detach().numpy()))  # type: ignore[union-attr]
    )
    assert live.project.config_path.read_text() == live.config_json()
    assert live.summary.metric_name == "top1"
    assert math.isnan(live.summary.metric_float)


def test_the_users_model_keeps_its_mode(tmp_path: Path) -> None:
    model = make_net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    session = open_session(model, data=make_data(), project=tmp_path / "p", threads=1)
    session.evaluate()
    session.dispose()
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_analyse_measures_every_layer_even_those_switched_off(live: Session) -> None:
    live.toggle("conv2")
    live.analyse()
    assert live.job.state == "finished"
    assert live.layers["cosine"].between(0.9, 1.0).all()
    assert live.layers["accumulated_error"].notna().all()
    assert live.summary.metric_float == 1.0  # labels are the float model's own answers
    assert live.summary.metric_is_prediction
    assert set(live.trials["kind"]) == {"float", "all"}
    assert live.ranking[0] == live.layers.sort_values("cosine")["name"].iloc[0]
    live.evaluate()
    assert not live.summary.metric_is_prediction
    assert set(read_record(live.project.record_path).layers) == {"conv1", "fc"}


def test_search_makes_its_answer_an_edit_that_can_be_undone(live: Session) -> None:
    before = live.config_json()
    live.auto_calibrate(max_loss=1.0)
    assert live.summary.quantized == 3, "everything passes a target that cannot be missed"
    assert live.config_json() == before
    live.auto_calibrate(max_loss=0.0)
    assert live.summary.metric_float - live.summary.metric_current <= 0.0
    while live.can_undo:
        live.undo()
    assert live.config_json() == before


def test_export_writes_files_that_onnx_runtime_scores_as_reported(live: Session) -> None:
    live.toggle("conv1")
    live.export()
    assert live.exports is not None
    files = {file.kind: file for file in live.exports.files}
    assert {"float", "fake_quant", "deploy"} <= set(files)
    session = ort.InferenceSession(files["fake_quant"].path)
    name = session.get_inputs()[0].name
    right = total = 0
    for x, y in make_data():
        answer = session.run(None, {name: x.numpy()})[0].argmax(axis=1)
        right, total = right + int((answer == y.numpy()).sum()), total + len(y)
    assert files["fake_quant"].metric == pytest.approx(right / total)
    assert files["deploy"].metric is None
    assert files["fake_quant"].latency_ms is not None
    for file in files.values():
        assert file.bytes == Path(file.path).stat().st_size
        assert Path(file.path).parent == live.project.exports
    assert live.exports.parity
    assert Session(Project.open(live.project.folder)).exports == live.exports


def test_histogram_counts_every_input_value(live: Session) -> None:
    assert live.histogram("conv2") is None, "nothing is known before the analysis"
    live.analyse()
    found = live.histogram("conv2")
    assert found is not None
    assert found.activation_counts.sum() == 2 * 8 * 6 * 8 * 8
    assert found.weight_counts.sum() == 8 * 6 * 3 * 3
    viewer = Session(Project.open(live.project.folder))
    again = viewer.histogram("conv2")
    assert again is not None
    assert np.array_equal(again.activation_edges, found.activation_edges)


def test_the_script_gives_the_same_record_and_files_in_a_fresh_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session("digits-autoencoder", project=tmp_path / "p", threads=1)
    names = session.layers["name"].tolist()
    session.toggle(names[1])
    session.set_option(names[2:3], "wts_bits", 7)
    session.export()
    session.dispose()
    done = warm.run([str(session.project.log_path)], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "reproduced"
    assert (made / "ptq.record.txt").read_bytes() == session.project.record_path.read_bytes()
    for kind in ("fake_quant", "deploy", "qdq"):
        name = f"digits-autoencoder_{kind}_model.onnx"
        ours = session.project.exports / name
        assert ours.exists() == (made / name).exists()
        if ours.exists():
            assert (made / name).read_bytes() == ours.read_bytes(), kind


def test_a_live_project_opened_elsewhere_shows_results_and_asks_for_the_model(
    live: Session,
) -> None:
    live.analyse()
    live.dispose()
    folder = live.project.folder
    program = (
        "import sys\n"
        "from workbench.studio import open_session\n"
        "session = open_session(sys.argv[1])\n"
        "assert session.layers['cosine'].notna().all()\n"
        "assert session.summary.metric_float == 1.0\n"
        "session.toggle('fc')\n"
        "try:\n"
        "    session.evaluate()\n"
        "except Exception as error:\n"
        "    print(error)\n"
    )
    done = warm.run(["-c", program, str(folder)])
    assert "made from a Net object of another Python process" in done.stdout, done.stderr
    assert "package.module:factory" in done.stdout
    again = open_session(make_net(), data=make_data(), project=folder, threads=1)
    assert again.summary.metric_float == 1.0, "same model, same data: results are kept"
    assert again.layers["state"].iloc[2] == "skipped"


def test_another_model_under_the_same_project_drops_results_but_keeps_the_configuration(
    live: Session,
) -> None:
    live.analyse()
    live.toggle("fc")
    net = make_net()
    with torch.no_grad():
        net.fc.weight.mul_(2)  # type: ignore[union-attr, operator]
    again = open_session(net, data=make_data(), project=live.project.folder, threads=1)
    assert again.layers["cosine"].isna().all()
    assert again.trials.empty
    assert math.isnan(again.summary.metric_float)
    assert again.layers["state"].iloc[2] == "skipped"
    live.poll()
    assert live.trials.empty


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell starts what it runs in the background with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_keyboard_interrupt_cancels_and_keeps_what_was_finished(
    tmp_path: Path, interruptible: None
) -> None:
    session = open_session(
        make_net(), data=make_data(20), metric=slow_metric, project=tmp_path / "p", threads=1
    )

    def interrupt() -> None:
        watcher = Session(Project.open(session.project.folder))
        while "evaluating the float" not in (watcher.job.message if watcher.job else ""):
            watcher.poll()
            time.sleep(0.02)
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        session.analyse()
    thread.join()
    assert session.job.state == "cancelled"
    assert session.layers["cosine"].notna().all(), "measured before the stop"
    session.toggle("fc")


def test_one_job_at_a_time(tmp_path: Path) -> None:
    session = open_session(
        make_net(), data=make_data(), metric=slow_metric, project=tmp_path / "p", threads=1
    )
    other = open_session(tmp_path / "p")
    session.evaluate(wait=False)
    with pytest.raises(JobActive, match="already"):
        other.analyse()
    other.cancel()
    with pytest.raises(Cancelled):
        wait_for(session, session.job.id)
    assert session.job.state == "cancelled"
    other.poll()
    assert other.job.state == "cancelled"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (ZeroDivisionError("odd"), "ZeroDivisionError: odd"),
        (float("nan"), "the metric is nan"),
        ("high", "not a number"),
    ],
)
def test_a_metric_that_fails_is_said_and_the_project_goes_on(
    tmp_path: Path, value: Any, words: str
) -> None:
    def metric(model: Any, batches: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    session = open_session(
        make_net(), data=make_data(), metric=metric, project=tmp_path / "p", threads=1
    )
    with pytest.raises(JobFailed, match=words):
        session.analyse()
    assert session.job.error is not None
    assert session.job.error.hint
    assert "Traceback" in session.job.error.details
    assert session.layers["cosine"].notna().all()
    session.toggle("fc")


def test_nothing_to_quantise_is_said(live: Session, tmp_path: Path) -> None:
    live.set_flag(["conv1", "conv2", "fc"], False)
    with pytest.raises(JobFailed, match="every layer is switched off"):
        live.evaluate()
    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Flatten())
    empty = open_session(model, data=make_data(), project=tmp_path / "q", threads=1)
    assert empty.layers.empty
    with pytest.raises(JobFailed, match="no layer"):
        empty.analyse()
    with pytest.raises(WorkbenchError):
        empty.config_json()
    assert empty.summary.eligible == 0
    empty.dispose()


def test_data_without_labels_is_judged_by_cosine(tmp_path: Path) -> None:
    session = open_session(
        make_net(), data=make_data(labels=False), project=tmp_path / "p", threads=1
    )
    session.analyse()
    assert session.summary.metric_name == "cosine"
    assert session.summary.metric_float == pytest.approx(1.0)
    assert 0.9 < session.summary.metric_current < 1.0


def test_a_project_of_a_dead_process_can_go_on(live: Session) -> None:
    """A notebook kernel that was killed in mid-job must not lock its project."""
    program = (
        "import os, sys\n"
        "from workbench.studio import jobtable\n"
        "from workbench.studio.store import Store\n"
        "from pathlib import Path\n"
        "store = Store(Path(sys.argv[1]) / 'project.sqlite')\n"
        "jobtable.submit(store, 'analyse', {}, runner='thread')\n"
        "if sys.argv[2] == 'running':\n"
        "    jobtable.claim(store, runner='thread')\n"
        "os.kill(os.getpid(), 9)\n"
    )

    def die(state: str) -> None:
        done = warm.run(["-c", program, str(live.project.folder), state])
        assert done.returncode == -signal.SIGKILL, done.stderr

    for state in ("queued", "running"):
        die(state)
        live.poll()
        assert live.job.active
        live.evaluate()
        assert live.job.state == "finished"
    viewer = Session(Project.open(live.project.folder))
    die("running")
    viewer.poll()
    time.sleep(0.6)
    viewer.poll()
    assert viewer.job.state == "failed"
    assert "the process that ran the job ended" in viewer.job.error.summary


def test_exports_into_a_folder_that_cannot_be_made(live: Session, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(JobFailed, match="cannot be written"):
        live.export(str(tmp_path / "file" / "net"))
    assert live.exports is None
    assert not list(live.project.folder.glob(".export-*"))


def test_sources_that_cannot_be_opened_say_what_can(tmp_path: Path) -> None:
    for source, words in (
        ("model.pt2", "no such file"),
        ("model.onnx", "no such file"),
        ("model.pt", "pickled"),
        ("nonsense", "neither an example nor a project folder"),
        ("package.module:factory", "loading code is off"),
        (3, "is no source"),
        (torch.jit.script(torch.nn.Linear(2, 2)), "TorchScript"),
    ):
        with pytest.raises(WorkbenchError, match=words):
            open_session(source, project=tmp_path / "p")
    assert not (tmp_path / "p").exists()
    with pytest.raises(WrongValue, match="needs data"):
        open_session(make_net(), project=tmp_path / "p")
    with pytest.raises(WrongValue, match="yields nothing"):
        open_session(make_net(), data=[], project=tmp_path / "p")
    with pytest.raises(MissingFile):
        Project.open(tmp_path / "p")


def test_data_that_does_not_fit_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match=r"wants 3×any×any, the data has 8×8×3: transpose\?"):
        open_session(make_net(), data=[torch.randn(4, 8, 8, 3)], project=tmp_path / "p", threads=1)
