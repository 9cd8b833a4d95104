"""Jobs, trials, exports and the graph, as a session in another thread or process reports them."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from workbench.engine.analysis.cost import Cost
from workbench.engine.errors import WrongType, WrongValue
from workbench.netron_server import resolve
from workbench.studio import ErrorText, ExportedFile, ExportResult, ParityLine, jobtable
from workbench.studio.session import Session
from workbench.widgets import (
    ExportPanel,
    JobBar,
    LayerTable,
    NetronView,
    SearchMonitor,
    SensitivityChart,
    Workbench,
    show_jobs,
)
from workbench.widgets.polling import clock


def run(session: Session, kind: str, done: int, message: str) -> int:
    store = session.project.store
    job = jobtable.submit(store, kind, {}, runner="thread")
    jobtable.claim(store, job, runner="thread")
    with store.write() as connection:
        connection.execute(
            "UPDATE jobs SET done = ?, total = 200, message = ? WHERE id = ?", (done, message, job)
        )
    session.poll()
    return job


def exported(session: Session, folder: Path) -> ExportResult:
    path = folder / "net_deploy_model.onnx"
    path.write_bytes(b"x" * 1500)
    result = ExportResult(
        (
            ExportedFile("fake_quant", str(folder / "gone.onnx"), 6000, 0.975, 2.5, 0.25, 1.0),
            ExportedFile("deploy", str(path), 1500, None, None, None, 4.0),
        ),
        (ParityLine("fake-quant ≡ deploy <exact>", True, 0.0, None),),
    )
    session.project.store.put(exports=dataclasses.asdict(result))
    session.poll()
    return result


def test_the_job_bar_follows_a_job_to_its_end(session: Session) -> None:
    bar = JobBar(session)
    assert bar.line.layout.display == "none"
    job = run(session, "analyse", 50, "layer <1>")
    assert (bar.line.layout.display, bar.bar.value, bar.bar.max) == ("", 50, 200)
    assert bar.bar.layout.display == ""
    assert "25 %" in bar.label.value
    assert "layer &lt;1&gt;" in bar.label.value
    assert bar.cancel.layout.display == ""
    bar.cancel.click()
    assert jobtable.cancel_requested(session.project.store, job)
    error = ErrorText("out of <memory>", "Use fewer batches.")
    jobtable.finish(session.project.store, job, "failed", error)
    session.poll()
    assert "out of &lt;memory&gt;" in bar.label.value
    assert "Use fewer batches." in bar.label.value
    assert bar.cancel.layout.display == "none"


def test_buttons_rest_while_a_job_runs(session: Session) -> None:
    everything = Workbench(session)
    starters = [everything.analyse, everything.search.start, everything.export.export]
    assert not any(button.disabled for button in starters)
    job = run(session, "search", 10, "")
    assert all(button.disabled for button in starters)
    jobtable.finish(session.project.store, job, "finished")
    session.poll()
    assert not any(button.disabled for button in starters)


def test_a_session_that_only_looks_on_says_so(session: Session) -> None:
    everything = Workbench(session)
    everything.analyse.click()
    assert "cannot start jobs" in everything.trouble.value


def test_trials_appear_as_they_finish(session: Session) -> None:
    monitor = SearchMonitor(session)
    assert "No trial" in monitor.trials.value
    store = session.project.store
    with store.write() as connection:
        for trial, satisfied in ((1, 0), (2, 1)):
            connection.execute(
                "INSERT INTO trials (job, trial, phase, kind, metric, loss, satisfied, seconds, "
                "float_layers, config_hash) "
                "VALUES (1, ?, 'search', 'probe', 0.9, ?, ?, 1, '[]', 'h')",
                (trial, 0.001 if satisfied else 0.01, satisfied),
            )
    store.put(ranking=list(session.layers["name"][:11]), bracket=[2, 5])
    session.poll()
    assert monitor.trials.value.count("✓") == monitor.trials.value.count("✗") == 1
    monitor.max_loss.value = 0.02  # judged by the target that the chart draws
    assert monitor.trials.value.count("✓") == 2
    xs = [x for trace in monitor.chart.data if trace.x is not None for x in trace.x]
    assert {1, 2} <= set(xs)
    assert len(monitor.strip.data) > 0


def trial(session: Session, job: int, floats: list[str], metric: float) -> None:
    session.project.store.add_trial(
        job, phase="search", kind="probe", metric=metric, loss=0.98 - metric,
        satisfied=metric > 0.97, seconds=1.0, float_layers=floats, config_hash="", share=0.25,
        cost=Cost(1000 + len(floats), 2000),
    )  # fmt: skip
    session.poll()


def test_a_search_is_paused_resumed_and_its_best_accepted(session: Session) -> None:
    monitor = SearchMonitor(session)
    assert monitor.strategy.value == "Recover"
    assert monitor.pause.disabled and monitor.accept.disabled
    job = run(session, "search", 10, "")
    assert not monitor.pause.disabled and monitor.accept.disabled
    monitor.pause.click()
    assert session.job.state == "paused"
    assert monitor.pause.description == "Resume"
    assert "paused" in monitor.bar.label.value
    assert monitor.bar.cancel.layout.display == ""
    monitor.pause.click()
    assert session.job.state == "running"
    names = session.layers["name"].tolist()
    trial(session, job, names[:1], 0.9)
    assert monitor.accept.disabled
    trial(session, job, names[:2], 0.975)
    assert not monitor.accept.disabled
    monitor.accept.click()
    assert session.layers["quant_enable"].tolist()[:3] == [False, False, True]
    assert jobtable.cancel_requested(session.project.store, job)


def test_trials_stand_at_their_cost(session: Session) -> None:
    session.project.store.put(figures={"metric_name": "top-1"})
    monitor = SearchMonitor(session)
    names = session.layers["name"].tolist()
    trial(session, 1, names[:1], 0.9)
    trial(session, 1, names[:3], 0.975)

    def xs() -> set[float]:
        return {x for trace in monitor.pareto.data if trace.x is not None for x in trace.x}

    assert xs() == {1001.0, 1003.0}
    monitor.cost.value = "bops"
    assert xs() == {2000.0}
    assert "25 %" in monitor.trials.value
    assert "<td>0.50 %</td>" in monitor.trials.value  # what it lost, as the metric beside it
    session.project.store.put(ranking=names[:4])
    session.pin(names[1], False)
    held = [trace for trace in monitor.strip.data if trace.name == "pinned, stays float"]
    assert [list(trace.customdata) for trace in held] == [[names[1]]]


def test_export_shows_figures_and_parity(session: Session, tmp_path: Path) -> None:
    panel = ExportPanel(session)
    assert "Nothing is exported" in panel.result.value
    exported(session, tmp_path)
    for text in ("1.50 kB", "4.00×", "2.50 ms ± 0.25", "✓", "&lt;exact&gt;"):
        assert text in panel.result.value, text
    assert panel.script.value == ""
    panel._script.selected_index = 0
    assert "workbench" in panel.script.value


def test_the_graph_is_the_newest_export(session: Session, tmp_path: Path) -> None:
    view = NetronView(session)
    assert view.url == ""
    assert "Export" in view.note
    exported(session, tmp_path)
    name = view.url.split("data%2F")[1].split("%2F")[0]
    assert resolve(name, "net_deploy_model.onnx") == tmp_path / "net_deploy_model.onnx"
    layer = session.layers["name"][2]
    assert view.colors[layer]  # the worst layer stands out
    view.selected = f"{layer}.quant"
    assert view.layer == layer
    view.selected = "Reshape#1"
    assert view.layer == ""
    view.layer = session.layers["name"][4]
    assert view.selected == session.layers["name"][4]


def test_pointing_at_a_layer_is_shared_by_all_views(session: Session) -> None:
    everything = Workbench(session)
    name = session.layers["name"][4]
    everything.graph.selected = f"{name}#mul0"
    assert everything.table.selected == everything.chart.selected == name
    everything.table.selected = session.layers["name"][1]
    assert everything.graph.selected == session.layers["name"][1]


def test_disposing_leaves_nothing(
    session: Session, count_watchers: Callable[[Session], int]
) -> None:
    before = count_watchers(session)
    for _ in range(3):
        everything = Workbench(session)
        everything.dispose()
        everything.dispose()
    assert count_watchers(session) == before


def test_the_clock_ticks_while_a_view_is_open(
    session: Session, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.studio.project import Project

    displayed: list[object] = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    monkeypatch.setattr("workbench.widgets.job_bar._in_a_cell", lambda: True)
    show_jobs(session)

    async def story() -> None:
        bar = JobBar(session)
        second = JobBar(session)
        other = Session(Project.open(folder))
        name = session.layers["name"][0]
        other.toggle(name)
        for _ in range(50):
            await asyncio.sleep(0.1)
            if not session.layers["quant_enable"][0]:
                break
        assert not session.layers["quant_enable"][0]
        # A job that the clock finds has no cell that waits for it, and no bar of its own.
        job = jobtable.submit(other.project.store, "analyse", {}, runner="thread")
        jobtable.claim(other.project.store, job, runner="thread")
        for _ in range(50):
            await asyncio.sleep(0.1)
            if session.job is not None:
                break
        assert session.job is not None and session.job.active
        assert displayed == []
        jobtable.finish(other.project.store, job, "finished")
        job = jobtable.submit(other.project.store, "analyse", {}, runner="thread")
        jobtable.claim(other.project.store, job, runner="thread")
        session.poll()
        assert [type(shown) for shown in displayed] == [JobBar]
        jobtable.finish(other.project.store, job, "finished")
        session.poll()
        bar.dispose()
        assert clock(session).running
        second.dispose()
        assert not clock(session).running
        other.dispose()

    # Playwright's loop, where its fixture is open, occupies the main thread.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, story()).result(timeout=30)


def test_what_cannot_be_shown_is_said_in_words(session: Session) -> None:
    for view in (LayerTable, SensitivityChart, SearchMonitor, JobBar, NetronView, Workbench):
        with pytest.raises(WrongType, match="is not a session"):
            view(5)  # type: ignore[arg-type]
    with pytest.raises(WrongType, match="'digits-resnet' is not a session"):
        SensitivityChart(session="digits-resnet")  # type: ignore[arg-type]
    with pytest.raises(WrongValue, match=r"called 'cos'.*error"):
        SensitivityChart(session, quantity="cos")
    with pytest.raises(WrongValue, match="1 or more"):
        LayerTable(session, rows=0)
