"""The history of a project: what is in it, what may be deleted of it, and what stays."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import history_case as case
import pytest

from workbench.engine.errors import WrongState, WrongValue
from workbench.studio import Project, Session, jobtable
from workbench.studio.history import remember


@pytest.fixture
def project(prepared: Callable[..., Project]) -> Project:
    return prepared(6)


def names(project: Project) -> list[str]:
    return [layer.name for layer in project.store.layers()]


def keys(session: Session) -> list[str]:
    return session.history()["key"].tolist()


def test_everything_ever_run_is_there_in_order(project: Project) -> None:
    first, second, *_ = names(project)
    search = case.add_job(project, "search")
    case.add_trial(project, search, (first,), 0.9)
    case.add_trial(project, search, (), 0.8, settings={second: {"wts_bits": 4}})
    export = case.add_export(project, project.exports, floats=(second,))
    failed = case.add_job(project, "train", "failed", method="qat")
    case.add_job(project, "inspect")
    session = Session(project)
    table = session.history()
    assert table["key"].tolist() == ["trial 0", "trial 1", f"job {export}", f"job {failed}"]
    assert table["kind"].tolist() == ["probe", "probe", "export", "train"]
    assert table["job_kind"].tolist() == ["search", "search", "export", "train"]
    row = table.iloc[2]
    assert (row["metric"], row["size"], row["n_float"]) == (0.97, 100, 1)
    assert row["loss"] == pytest.approx(0.01)
    assert len(row["files"]) == 3
    row = table.iloc[3]
    assert (row["state"], row["error"], row["asked"]) == (
        "failed", "no memory left", {"method": "qat"},
    )  # fmt: skip
    assert math.isnan(row["metric"])


def test_a_training_shows_the_network_it_made_once(project: Project) -> None:
    job = case.add_job(project, "train", method="qat")
    case.add_trial(project, job, names(project)[:2], 0.975, kind="trained")
    project.store.put(training={"method": "qat", "asked": {}, "jobs": [job], "seconds": 12.5})
    remember(project.store, job, "train")
    row = Session(project).history().iloc[-1]
    assert (row["key"], row["metric"], row["n_float"], row["seconds"]) == (
        f"job {job}", 0.975, 2, 12.5,
    )  # fmt: skip


def test_a_smaller_model_is_listed_and_its_project_is_never_deleted(
    project: Project, tmp_path: Path
) -> None:
    smaller = tmp_path / "smaller"
    smaller.mkdir()
    facts = {
        "name": "smaller", "folder": str(smaller), "metric": [0.98, 0.97], "bytes": [400, 300],
        "parameters": [100, 75], "macs": [10, 5], "seconds": 2.5,
    }  # fmt: skip
    tried = case.add_job(project, "decompose", dry_run=True)
    project.store.put(shrunk=facts)
    job = case.add_job(project, "prune")
    for one, kind in ((tried, "decompose"), (job, "prune")):
        remember(project.store, one, kind)
    session = Session(project)
    row = session.history().iloc[-1]
    assert keys(session) == [f"job {job}"], "what was only tried leaves nothing"
    assert (row["metric"], row["size"], row["seconds"]) == (0.97, 300, 2.5)
    assert row["loss"] == pytest.approx(0.01)
    assert session.delete([f"job {job}"]).files == ()
    assert smaller.exists()


def test_two_rows_of_any_kind_side_by_side(project: Project) -> None:
    first, second, *_ = names(project)
    trial = case.add_trial(project, case.add_job(project, "search"), (first,), 0.9)
    job = case.add_export(project, project.exports, floats=(second,))
    table = Session(project).compare_entries(f"trial {trial}", f"job {job}")
    assert table.columns.tolist() == ["trial 0", f"job {job}"]
    assert table.loc[("figure", "metric")].tolist() == [0.9, 0.97]
    assert table.loc[("layer", first)].tolist() == ["float", "quantised"]
    assert table.loc[("layer", second)].tolist() == ["quantised", "float"]


def test_an_export_is_taken_up_again_as_one_edit(project: Project) -> None:
    second = names(project)[1]
    job = case.add_export(project, project.exports, floats=(second,))
    session = Session(project)
    assert session.use_entry(f"job {job}") == (second,)
    table = session.layers
    assert table[table["eligible"] & ~table["quant_enable"]]["name"].tolist() == [second]
    session.undo()
    assert session.layers["quant_enable"].sum() == session.layers["eligible"].sum()
    failed = case.add_job(project, "train", "failed")
    with pytest.raises(WrongState, match="does not know"):
        session.use_entry(f"job {failed}")


def test_a_deleted_trial_is_gone_in_every_window(project: Project) -> None:
    search = case.add_job(project, "search")
    for metric in (0.9, 0.95, 0.97):
        case.add_trial(project, search, (names(project)[0],), metric)
    here, there = Session(project), Session(Project.open(project.folder))
    plan = here.delete(["trial 1"])
    assert (plan.trials, plan.jobs, plan.files) == (1, 0, ())
    there.poll()
    for session in (here, there):
        assert keys(session) == ["trial 0", "trial 2"]
        assert session.trials["metric"].tolist() == [0.9, 0.97]
    case.add_trial(project, search, (), 0.99)
    there.poll()
    assert there.trials["metric"].tolist() == [0.9, 0.97, 0.99]
    assert len(set(keys(there))) == 3
    with pytest.raises(WrongValue, match="trial 1"):
        here.delete(["trial 1"])
    there.dispose()


def test_a_measured_metric_is_a_prediction_again_without_its_trial(project: Project) -> None:
    session = Session(project)
    digest = session._follower.figures.hash()
    project.store.add_trial(
        1, phase="evaluate", kind="final", metric=0.91, loss=0.07, satisfied=True, seconds=1.0,
        float_layers=[], config_hash=digest,
    )  # fmt: skip
    session.poll()
    assert (session.summary.metric_current, session.summary.metric_is_prediction) == (0.91, False)
    session.delete(["trial 0"])
    assert session.summary.metric_is_prediction


def test_the_files_of_an_export_go_with_it_and_no_others(project: Project, tmp_path: Path) -> None:
    own = case.add_export(project, project.exports)
    elsewhere = case.add_export(project, tmp_path / "elsewhere")
    beside = project.exports / "mine.txt"
    beside.write_text("kept")
    session = Session(project)
    plan = session.deletion([f"job {own}", f"job {elsewhere}"])
    assert {p.parent for p in plan.files} == {project.exports}
    assert {p.parent for p in plan.kept} == {tmp_path / "elsewhere"}
    assert all(p.exists() for p in plan.files), "asking deletes nothing"
    session.delete([f"job {own}", f"job {elsewhere}"])
    assert list(project.exports.iterdir()) == [beside]
    assert len(list((tmp_path / "elsewhere").iterdir())) == 3
    assert keys(session) == []


def test_files_that_a_later_export_wrote_again_are_its_own(project: Project) -> None:
    early = case.add_export(project, project.exports)
    late = case.add_export(project, project.exports, metric=0.96)
    session = Session(project)
    assert session.exports is not None
    assert session.delete([f"job {early}"]).files == ()
    assert len(list(project.exports.iterdir())) == 3
    assert session.exports is not None
    session.delete([f"job {late}"])
    assert list(project.exports.iterdir()) == []
    assert session.exports is None


def test_links_and_the_project_s_own_files_are_never_deleted(
    project: Project, tmp_path: Path
) -> None:
    """A project from somewhere else may name any path as what it exported."""
    outside = tmp_path / "precious.onnx"
    outside.write_text("x")
    project.exports.mkdir()
    (project.exports / "link.onnx").symlink_to(outside)
    (project.folder / "ptq.json").write_text("{}")
    paths = [
        outside, project.exports / "link.onnx", project.exports / ".." / ".." / "precious.onnx",
        project.folder / "ptq.json", project.folder / "project.toml", project.folder,
        project.exports,
    ]  # fmt: skip
    files = [
        {"kind": "qdq", "path": str(path), "bytes": 1, "metric": None, "latency_ms": None,
         "latency_spread_ms": None, "ratio": 1.0}
        for path in paths
    ]  # fmt: skip
    project.store.put(exports={"files": files, "parity": []})
    job = case.add_job(project, "export")
    remember(project.store, job, "export")
    session = Session(project)
    assert session.delete([f"job {job}"]).files == ()
    assert all(path.exists() for path in paths)
    assert session.layers is not None


def test_a_training_takes_its_weights_along_if_it_is_the_last(project: Project) -> None:
    weights, folder = project.weights_of("qat"), project.checkpoints_of("qat")
    early, late = (case.add_job(project, "train", method="qat") for _ in range(2))
    project.store.put(training={"method": "qat", "asked": {}, "jobs": [late]})
    folder.mkdir(parents=True)
    weights.write_bytes(b"w")
    session = Session(project)
    assert session.delete([f"job {early}"]).files == ()
    assert session.training is not None
    session.delete([f"job {late}"])
    assert not weights.exists() and not folder.exists()
    assert session.training is None


def test_what_a_running_job_makes_cannot_be_deleted(project: Project) -> None:
    job = case.add_job(project, "search", "running")
    case.add_trial(project, job, (), 0.9)
    session = Session(project)
    with pytest.raises(WrongState, match="still at work"):
        session.delete(["trial 0"])
    jobtable.finish(project.store, job, "finished")
    session.poll()
    session.delete(["trial 0"])
    assert keys(session) == []


def test_another_model_starts_a_new_history(project: Project) -> None:
    case.add_export(project, project.exports)
    session = Session(project)
    project.store.forget_results()
    session.poll()
    job = case.add_job(project, "export", "failed")
    assert keys(session) == [f"job {job}"]
    shutil.rmtree(project.exports)
