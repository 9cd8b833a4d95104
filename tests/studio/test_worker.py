"""Jobs in the project's worker process: killed, cancelled, watched by several windows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from job_waiting import done, wait

from workbench.studio import Session, jobs, open_session
from workbench.studio.errors import JobActive
from workbench.studio.jobs import worker_process

Open = Callable[..., Session]


def test_a_window_that_comes_later_sees_the_running_job_and_all_of_its_history(
    open_worker: Open,
) -> None:
    first = open_worker("studio_models:slow_metric")
    first.start("analyse")
    wait(first, lambda: first.job.message.startswith("evaluating the float"))
    late = open_worker()  # a reloaded page
    assert late.job is not None
    assert late.job.id == first.job.id
    assert late.job.state == "running"
    assert late.layers["cosine"].notna().all()
    late.toggle("fc")  # edits go on while a job runs
    first.poll()
    assert first.layers["state"].iloc[2] == "skipped"
    first.dispose()
    wait(late, done(late))
    assert late.job.state == "finished"
    assert late.summary.metric_float == 1.0
    assert late.layers["state"].iloc[2] == "skipped"


def test_kill_9_fails_the_job_in_words_and_the_next_job_gets_a_new_worker(
    open_worker: Open,
) -> None:
    session = open_worker("studio_models:slow_metric")
    session.start("analyse")
    wait(session, lambda: session.job.message.startswith("evaluating the float"))
    pid = worker_process(session.project.store)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait(session, done(session))
    assert session.job.state == "failed"
    assert session.job.error.summary.startswith("the worker died: it was killed (signal 9)")
    assert session.job.error.summary.endswith("the project is safe")
    assert session.layers["cosine"].notna().all(), "what was measured is kept"
    check = session.project.store.connection.execute("PRAGMA integrity_check").fetchone()
    assert check == ("ok",)
    session.start("open")
    wait(session, done(session))
    assert session.job.state == "finished"
    assert worker_process(session.project.store) not in (None, pid)


@pytest.mark.parametrize("metric", ["slow_metric", "stuck_metric"])
def test_cancel_ends_even_a_stuck_task(open_worker: Open, metric: str) -> None:
    session = open_worker(f"studio_models:{metric}")
    session.start("analyse")
    wait(session, lambda: session.job.message.startswith("evaluating the float"))
    session.cancel()
    wait(session, done(session))
    assert session.job.state == "cancelled"
    session.toggle("fc")
    session.start("open")
    wait(session, done(session))
    assert session.job.state == "finished"


def test_a_notebook_beside_a_page(open_worker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    page = open_worker("studio_models:slow_metric")
    page.start("open")
    folder = page.project.folder
    notebook = open_session(folder)  # waits for the page, whose job it is
    assert list(notebook.layers["name"]) == ["conv1", "conv2", "fc"]
    page.poll()
    page.toggle("conv1")  # both have seen the same revision: no edit is lost
    notebook.toggle("fc")
    page.poll()
    for window in (page, notebook):
        assert list(window.layers["quant_enable"]) == [False, True, False]

    killed: list[int] = []
    monkeypatch.setattr(jobs, "kill_worker", lambda pid, _created: killed.append(pid))
    monkeypatch.setattr(jobs, "CANCEL_GRACE", 0.05)
    notebook.start("analyse", wait=False)
    wait(page, lambda: page.job.message.startswith("evaluating the float"))
    me = os.getpid()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(os, "getpid", lambda: me + 1)
        with pytest.raises(JobActive, match=r"already: analyse") as error:
            page.start("evaluate")
    assert f"another notebook or script, process {me}" in error.value.hint
    # The process of a notebook is its user's: it stops at the next step, and is never ended.
    page.cancel()
    page.poll()
    assert (page.job.state, page.job.active) == ("cancelling", True)
    wait(page, done(page))
    assert page.job.state == "cancelled"
    assert killed == []
    notebook.dispose()


def test_a_cancel_before_the_worker_has_begun(open_worker: Open) -> None:
    session = open_worker()
    session.start("open")
    session.cancel()
    wait(session, done(session))
    assert session.job.state in ("cancelled", "finished")
    session.start("open")
    wait(session, done(session))
    assert session.job.state == "finished"


def test_a_factory_that_cannot_be_loaded(open_worker: Open) -> None:
    session = open_worker(name="studio_models:not_there")
    session.start("open")
    wait(session, done(session))
    assert session.job.state == "failed"
    assert "studio_models:not_there" in session.job.error.summary


def test_code_is_not_loaded_unless_allowed(
    open_worker: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORKBENCH_ALLOW_CODE")
    session = open_worker()
    session.start("open")
    wait(session, done(session))
    assert "loading code is off" in session.job.error.summary
    assert "--allow-code" in session.job.error.hint


def test_a_worker_that_cannot_start(open_worker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    session = open_worker()
    session.start("open")
    wait(session, done(session))
    assert session.job.state == "failed"
    assert "could not start" in session.job.error.summary


def test_histograms_come_from_the_worker(
    open_worker: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that starts cold, as with a user; those of the other tests are forks."""
    monkeypatch.setattr(jobs, "subprocess", subprocess)
    monkeypatch.setenv("WORKBENCH_WORKER_NICE", "3")
    session = open_worker()
    session.start("analyse")
    wait(session, done(session))
    assert session.job.state == "finished", session.job.error
    session.histogram("conv2")
    wait(session, lambda: session.histogram("conv2") is not None)
    worker = worker_process(session.project.store)
    assert worker is not None
    assert os.getpriority(os.PRIO_PROCESS, worker) == 3  # the page comes first
    found = session.histogram("conv2")
    assert found is not None
    assert found.activation_counts.sum() == 2 * 8 * 6 * 8 * 8


def test_an_idle_worker_goes(open_worker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_WORKER_IDLE", "0.2")
    session = open_worker()
    session.start("open")
    wait(session, done(session))
    wait(session, lambda: worker_process(session.project.store) is None)
    session.start("open")
    wait(session, done(session))
    assert session.job.state == "finished"
