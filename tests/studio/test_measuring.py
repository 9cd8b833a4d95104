"""The evaluation behind a what-if, in the project's real worker process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import studio_models
import torch
from job_waiting import done, wait

from workbench.engine.errors import WrongState
from workbench.engine.export.torch_module import to_fake_quant
from workbench.engine.files.config import default_config
from workbench.engine.flows.calibration import Calibration
from workbench.engine.graph.capture import capture
from workbench.studio import Project, Session, measuring, measuring_control
from workbench.studio.errors import JobActive
from workbench.studio.jobs import ThreadManager, worker_process
from workbench.studio.measuring import Measuring

Open = Callable[..., Session]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring_control, "REST_SECONDS", 0.1)


def measured(session: Session) -> Callable[[], bool]:
    return lambda: not session.summary.metric_is_prediction


def in_state(session: Session, state: str) -> Callable[[], bool]:
    return lambda: session.measuring is not None and session.measuring.state == state


def accuracy_without(floats: set[str]) -> float:
    """Top-1 with everything calibrated together and these layers left in float, by hand."""
    batches = studio_models.make_data()
    captured = capture(studio_models.make_net(), (batches[0][0],))
    calibration = Calibration(captured, default_config(captured.layers, batch_num=2))
    for x, _ in batches[:2]:
        calibration.model(x)
    record = calibration.finalize()
    model = to_fake_quant(calibration.folded, record, set(record.layers) - floats)
    with torch.no_grad():
        hits = [model(x).argmax(1) == target for x, target in batches]
    return float(torch.cat(hits).double().mean())


def test_what_is_measured_replaces_the_prediction_and_is_no_job(open_worker: Open) -> None:
    session = open_worker()
    with pytest.raises(WrongState, match="no statistics"):
        session.measure()
    session.start("analyse")
    wait(session, done(session))
    before = (session.job, len(session.trials), session.history()["key"].tolist())
    session.toggle("conv1")
    assert session.summary.metric_is_prediction
    wait(session, measured(session))
    assert session.summary.metric_current == accuracy_without({"conv1"})
    after = (session.job, len(session.trials), session.history()["key"].tolist())
    assert after == before
    assert session.notice == ""

    # Known configurations cost nothing, in this window and in another.
    asked = session.measuring
    session.undo()
    assert not session.summary.metric_is_prediction
    session.redo()
    assert session.summary.metric_current == accuracy_without({"conv1"})
    late = open_worker()
    assert not late.summary.metric_is_prediction
    assert late.measuring == asked
    late.dispose()

    # Other settings need other statistics, which are collected as long as that is quick.
    session.set_option(["conv2"], "wts_bits", 4)
    assert session.summary.metric_is_prediction
    wait(session, measured(session))

    # Switched off, nothing happens until somebody asks.
    session.set_background(False)
    session.toggle("conv2")
    for _look in range(40):
        session.poll()
        measuring_control.time.sleep(0.01)
    assert session.summary.metric_is_prediction
    assert session.measuring == Measuring(session.measuring.config_hash, "done")
    session.measure()
    wait(session, measured(session))
    session.set_background(True)

    # What would take long waits until somebody asks.
    store = session.project.store
    with store.write() as connection:
        connection.execute("UPDATE evaluations SET seconds = 100")
    session.toggle("fc")
    session.toggle("conv2")
    wait(session, in_state(session, "declined"))
    assert session.measuring.seconds >= 100
    assert session.summary.metric_is_prediction
    session.measure()
    wait(session, measured(session))

    session.set_flag(session.layers["name"].tolist(), False)
    assert session.summary.metric_current == session.summary.metric_float
    with pytest.raises(WrongState, match="every layer is switched off"):
        session.measure()


def test_jobs_and_edits_go_first_even_when_it_does_not_let_go(
    open_worker: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = tmp_path / "hold"
    monkeypatch.setenv("WORKBENCH_TEST_HOLD", str(hold))
    session = open_worker("studio_models:held_metric")
    session.start("analyse")
    wait(session, done(session))
    store = session.project.store
    pid = worker_process(store)
    hold.touch()
    session.toggle("conv1")
    wait(session, in_state(session, "running"))
    first = session.measuring.config_hash

    session.toggle("conv2")  # another configuration: the first one is not wanted any more
    wait(session, lambda: session.measuring is None or session.measuring.config_hash != first)
    hold.unlink()
    wait(session, measured(session))

    hold.touch()
    session.toggle("conv1")
    wait(session, in_state(session, "running"))
    session.start("open")  # the worker begins anew, as the metric never looks up
    with pytest.raises(JobActive):
        session.measure()
    wait(session, done(session))
    assert session.job.state == "finished", session.job.error
    assert worker_process(store) == pid
    wait(session, in_state(session, "running"))  # the edit is still to be measured
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait(session, in_state(session, "failed"))
    assert session.measuring.error == measuring.DIED
    assert session.summary.metric_is_prediction
    hold.unlink()
    session.measure()
    wait(session, measured(session))
    assert worker_process(store) not in (None, pid)


def test_nothing_is_measured_behind_the_cells_of_a_notebook(
    prepared: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = prepared(4)
    session = Session(project, ThreadManager(project.folder))
    assert not session.measures
    session.toggle(session.layers["name"].iloc[0])
    measuring_control.time.sleep(0.15)
    session.poll()
    assert session.measuring is None
    with pytest.raises(WrongState, match="evaluate"):
        session.measure()


def test_a_request_from_anywhere_is_read_with_care() -> None:
    assert measuring.read_measuring({"state": "running", "seconds": "x"}) == Measuring(
        "", "running"
    )
    for value in (None, [], "running", {"state": "gone"}):
        assert measuring.read_measuring(value) is None
