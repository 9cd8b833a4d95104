"""A search that is paused, steered, stopped, killed and started again; trials side by side."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import warm
from job_waiting import done, wait
from studio_models import counted_metric, make_chain, make_data

from workbench.engine.errors import WrongState, WrongValue
from workbench.engine.files.record import read_record
from workbench.engine.search.strategies import PARETO, STRATEGIES
from workbench.studio import Project, Session, jobtable, open_session
from workbench.studio.errors import JobActive
from workbench.studio.jobs import worker_process

LAYERS = ("0", "2", "4", "6", "8", "10")
HARD = {"max_loss": 2e-4, "strategy": "Recover"}
"""A target that only the float model reaches, so that the search tries much."""


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setenv("WORKBENCH_TEST_CALLS", str(tmp_path / "calls"))
    return open_session(
        make_chain(), data=make_data(), metric=counted_metric, project=tmp_path / "p", threads=1
    )


@pytest.fixture
def open_chain(
    open_worker: Callable[..., Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Session]:
    """Windows on one project that a worker process works for."""
    monkeypatch.setenv("WORKBENCH_TEST_CALLS", str(tmp_path / "calls"))
    return lambda: open_worker("studio_models:counted_metric", "studio_models:make_chain")


def calls(tmp_path: Path) -> int:
    path = tmp_path / "calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


def probes(session: Session) -> int:
    return int((session.trials["kind"] == "probe").sum())


def state(session: Session) -> str:
    assert session.job is not None
    return session.job.state


def test_pause_holds_the_search_and_resume_lets_it_go_on(chain: Session, tmp_path: Path) -> None:
    chain.auto_calibrate(**HARD, wait=False)
    wait(chain, lambda: probes(chain) >= 1)
    chain.pause()
    assert state(chain) == "paused"
    assert chain.job.active and chain.job.seconds_left is None
    time.sleep(0.6)  # what was being evaluated ends
    chain.poll()
    before = (calls(tmp_path), len(chain.trials))
    time.sleep(0.8)
    chain.poll()
    assert (calls(tmp_path), len(chain.trials)) == before
    late = Session(Project.open(chain.project.folder))
    assert state(late) == "paused", "a window that comes later sees it"
    with pytest.raises(JobActive, match="paused"):
        chain.analyse()
    chain.toggle("0")  # edits go on
    late.resume()  # and any window may resume
    wait(chain, done(chain))
    assert state(chain) == "finished"
    assert calls(tmp_path) > before[0]


def test_a_paused_job_is_cancelled_and_pause_without_a_job_does_nothing(chain: Session) -> None:
    chain.pause()
    assert state(chain) == "finished"
    chain.auto_calibrate(**HARD, wait=False)
    wait(chain, lambda: state(chain) == "running")
    chain.pause()
    chain.cancel()
    assert wait(chain, done(chain)) < 10
    assert state(chain) == "cancelled"
    chain.resume()
    assert state(chain) == "cancelled"


def test_a_worker_killed_while_paused_fails_in_words(open_chain: Callable[[], Session]) -> None:
    session = open_chain()
    session.auto_calibrate(**HARD, wait=False)
    wait(session, lambda: probes(session) >= 1)
    session.pause()
    pid = worker_process(session.project.store)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait(session, done(session))
    assert state(session) == "failed"
    assert "the worker died" in session.job.error.summary
    assert session.job.error.summary.endswith("the project is safe")


def test_a_killed_search_started_again_runs_no_trial_twice(
    open_chain: Callable[[], Session], tmp_path: Path
) -> None:
    session = open_chain()
    session.auto_calibrate(**HARD, wait=False)
    wait(session, lambda: probes(session) >= 4)
    pid = worker_process(session.project.store)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait(session, done(session))
    known = session.trials
    session.auto_calibrate(**HARD, wait=False)
    wait(session, done(session))
    assert state(session) == "finished"
    again = session.trials.iloc[len(known) :]
    kept = {row.float_layers: row.metric for row in known.itertuples()}
    for row in again.itertuples():
        assert row.cached == (row.float_layers in kept), row
        if row.cached:
            assert row.metric == kept[row.float_layers]
    # One line for each trial that had to be evaluated; what the kill cut short left none, or one
    # whose trial could not be written any more.
    evaluated = int((~session.trials["cached"]).sum())
    assert evaluated <= calls(tmp_path) <= evaluated + 1


def test_pins_are_kept_and_obeyed_while_the_search_runs(chain: Session) -> None:
    chain.pin("4", True)
    chain.pin(["6", "10"], False)
    assert chain.pins == {"4": True, "6": False, "10": False}
    column = dict(zip(chain.layers["name"], chain.layers["pin"], strict=True))
    assert [column[name] for name in LAYERS if name not in chain.pins] == [""] * 3
    assert (column["4"], column["6"]) == ("quantised", "float")
    assert chain.layers["quant_enable"].all(), "a pin is no edit"
    assert Session(Project.open(chain.project.folder)).pins == chain.pins
    chain.auto_calibrate(**HARD, wait=False)
    wait(chain, lambda: probes(chain) >= 2)
    chain.pause()
    time.sleep(0.5)
    chain.poll()
    count = len(chain.trials)
    chain.pin("8", False)
    chain.resume()
    wait(chain, done(chain))
    searched = chain.trials[chain.trials["phase"] == "search"]
    assert all("4" not in floats for floats in searched["float_layers"])
    assert all({"6", "10"} <= set(floats) for floats in searched["float_layers"])
    # One trial may have been under way when the pin came.
    late = searched[searched["trial"] > count]
    assert len(late) and all("8" in floats for floats in late["float_layers"])
    chain.pin(list(LAYERS), None)
    assert chain.pins == {}
    assert set(chain.layers["pin"]) == {""}


def test_a_pin_names_a_layer_that_can_be_quantised(session: Session) -> None:
    blocked = session.layers[~session.layers["eligible"]]["name"].iloc[0]
    for name in (blocked, "nothing"):
        with pytest.raises(WrongValue):
            session.pin(name, False)
    assert session.pins == {}


def test_accept_best_stops_and_is_one_edit(chain: Session) -> None:
    before = chain.config_json()
    chain.auto_calibrate(max_loss=0.2, strategy="Greedy", wait=False)
    wait(chain, lambda: probes(chain) >= 1)
    with pytest.raises(WrongState, match="no trial"):
        chain.accept_best()
    assert chain.job.active, "a refusal does not stop the search"
    chain.cancel()
    wait(chain, done(chain))
    chain.auto_calibrate(max_loss=0.2, strategy="Recover", wait=False)
    wait(chain, lambda: chain.best_float_layers is not None)
    chain.pause()  # accepting works from there too
    own = chain.trials[chain.trials["job"] == chain.job.id]
    taken = chain.accept_best()
    wait(chain, done(chain))
    passing = own[own["satisfied"] & (own["kind"] == "probe")]
    assert len(taken) == passing["n_float"].min()
    table = chain.layers
    assert set(table[~table["quant_enable"]]["name"]) == set(taken)
    assert state(chain) == "cancelled"
    chain.undo()
    assert chain.config_json() == before
    assert not chain.can_undo


def test_accept_best_needs_a_search(session: Session) -> None:
    with pytest.raises(WrongState, match="no search"):
        session.accept_best()


def test_two_trials_side_by_side(session: Session) -> None:
    names = session.layers[session.layers["eligible"]]["name"].tolist()[:3]
    store = session.project.store
    for metric, floats in ((0.9, names[:2]), (0.95, names[1:])):
        store.add_trial(
            1, phase="search", kind="probe", metric=metric, loss=1 - metric, satisfied=True,
            seconds=2.0, float_layers=floats, config_hash="", share=0.25, cached=False,
        )  # fmt: skip
    session.poll()
    table = session.compare(0, 1)
    assert list(table.columns) == [0, 1]
    assert table.loc[("figure", "metric")].tolist() == [0.9, 0.95]
    assert table.loc[("figure", "share")].tolist() == [0.25, 0.25]
    assert math.isnan(table.loc[("figure", "size")].iloc[0]), "not known of a trial without a cost"
    layers = table.loc["layer"]
    assert layers.index.tolist() == [names[0], names[2]]
    assert layers.loc[names[0]].tolist() == ["float", "quantised"]
    assert layers.loc[names[2]].tolist() == ["quantised", "float"]
    with pytest.raises(WrongValue, match="no trial 7"):
        session.compare(0, 7)


def test_each_trial_has_its_size_and_bit_operations(chain: Session) -> None:
    """Weights at 1 or 4 bytes, one 8-byte factor a channel, biases at 4 (decision 17)."""
    chain.auto_calibrate(max_loss=0.2, strategy="Greedy")
    weights = {"0": 108, **dict.fromkeys(LAYERS[1:], 144)}
    for row in chain.trials.itertuples():
        size = sum(
            16 + (4 * n if name in row.float_layers else n + 4 * 8) for name, n in weights.items()
        )
        bops = sum(
            n * 64 * (32 * 32 if name in row.float_layers else 64) for name, n in weights.items()
        )
        assert (row.size, row.bops) == (size, bops)


def test_a_project_of_schema_2_is_brought_up_to_date(prepared: Callable[..., Project]) -> None:
    project = prepared()
    project.store.add_trial(
        1, phase="all", kind="all", metric=0.5, loss=0.1, satisfied=False, seconds=1.0,
        float_layers=[], config_hash="x",
    )  # fmt: skip
    path = project.store.path
    project.close()
    with sqlite3.connect(path) as connection:
        for table, column in (
            ("jobs", "pause"),
            ("trials", "share"),
            ("trials", "cached"),
            ("trials", "size"),
            ("trials", "bops"),
            ("trials", "settings"),
        ):
            connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    session = Session(Project.open(project.folder))
    assert session.trials["metric"].tolist() == [0.5]
    assert session.trials["share"].tolist() == [1.0]
    assert math.isnan(session.trials["size"].iloc[0])
    job = jobtable.submit(session.project.store, "search", {}, runner="thread")
    jobtable.request_pause(session.project.store, job, True)
    session.dispose()


def test_the_script_runs_the_search_again_with_its_strategy_and_pins(tmp_path: Path) -> None:
    session = open_session("digits-autoencoder", project=tmp_path / "p", threads=1)
    names = session.layers[session.layers["eligible"]]["name"].tolist()
    session.pin(names[0], True)
    session.set_option([names[-1]], "act_bits", 16)
    session.auto_calibrate(max_loss=0.3, strategy="Recover", sensitivity="SQNR")
    script = session.script()
    assert "strategy='Recover', sensitivity='SQNR'" in script
    assert f"session.pin([{names[0]!r}], True)" in script
    (tmp_path / "log.py").write_text(script, encoding="utf-8")
    warm.run(["log.py", "--search"], cwd=tmp_path, check=True)
    again = tmp_path / "reproduced" / "ptq.record.txt"
    assert again.read_bytes() == session.project.record_path.read_bytes()
    assert (tmp_path / "reproduced" / "search" / "search-cache.jsonl").exists()
    floats = set(session.layers[~session.layers["quant_enable"]]["name"])
    assert names[0] not in floats
    assert not floats & set(read_record(again).layers)
    session.toggle(names[1])
    assert "--search" not in session.script(), "an edited configuration is no search's answer"


def test_the_page_offers_the_engine_s_strategies() -> None:
    from workbench.app import search_settings
    from workbench.widgets import search_monitor

    assert set(search_settings.STRATEGIES) == {*STRATEGIES, PARETO}
    assert search_monitor.STRATEGIES == search_settings.STRATEGIES
