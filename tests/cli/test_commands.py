"""The commands in this process: what they print, and the code they end with."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
from studio_models import make_data

from workbench.cli import main
from workbench.studio import jobtable, open_session
from workbench.studio.project import DataSpec, Project, ProjectSettings, SourceSpec


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that names its model and data as code, as a script on a server would."""
    return _new(tmp_path_factory.mktemp("cli"), "studio_models:make_net")


def _new(folder: Path, model: str, metric: str | None = None) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_ALLOW_CODE", "1")
        session = open_session(
            model, "studio_models:make_data", metric, folder / "net", batch_size=8, threads=1
        )
        session.dispose()
    return folder / "net"


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in (*arguments, "--allow-code")])


@pytest.fixture(autouse=True)
def no_code_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_ALLOW_CODE", "0")


def test_a_chain_of_commands_leaves_what_a_page_can_open(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("analyse", project) == 0
    words = capsys.readouterr()
    assert "quantised: 3 of 3 layers" in words.out and "conv1" in words.out
    assert words.err.startswith("make_net: ")

    assert run("auto-calibrate", project, "--max-loss", "0.5", "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["ok"] and found["float_layers"] == [] and not err
    assert Path(found["record"]).is_file()

    session = open_session(project, wait=False)
    session.variants.save("all")
    session.toggle("fc")
    session.dispose()
    assert run("variants", project, "--save", "fc in float", "--compare", "all") == 0
    words = capsys.readouterr().out
    assert "  all: " in words and "0 layers in float" in words
    assert "    fc: quantised | now: float" in words
    assert run("variants", project, "--save", "all") == 2
    assert "'all' already" in capsys.readouterr().err
    assert run("variants", project, "--use", "all", "--delete", "fc in float", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["variants"]] == ["all"]

    assert run("export", project, "--prefix", tmp_path / "out" / "net", "--json") == 0
    files = {f["kind"]: f for f in json.loads(capsys.readouterr().out)["files"]}
    session = onnxruntime.InferenceSession(files["fake_quant"]["path"])
    x, labels = make_data()[-1]
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert (got.argmax(1) == labels.numpy()).mean() > 0.7

    opened = Project.open(project)
    assert opened.store.get("exports")["parity"]
    opened.close()

    assert run("report", project, "--output", tmp_path / "r.html") == 0
    assert f"report: {tmp_path / 'r.html'}" in capsys.readouterr().out
    assert "largest difference" in (tmp_path / "r.html").read_text("utf-8")


def test_training_and_the_trained_files(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", project, "--epochs", "1", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "qat" and found["layers_trained"] == 3 and found["checkpoints"]
    assert 0 < found["trained"] <= 1
    assert run("export", project, "--trained", "--prefix", tmp_path / "net", "--json") == 0
    kinds = {f["kind"] for f in json.loads(capsys.readouterr().out)["files"]}
    assert {"fake_quant", "deploy"} <= kinds
    assert run("train", project, "--resume") == 2
    assert "no stopped training" in capsys.readouterr().err


def test_a_sparse_training_for_good(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = shutil.copytree(project, tmp_path / "copy")  # its weights become others
    assert run("train", project, "--method", "compressed", "--use") == 2
    assert "--use does not go with --method compressed" in capsys.readouterr().err
    fast = ("--epochs", "1", "--json")
    assert run("train", project, "--method", "finetune", *fast) == 2
    assert "fine-tuning needs labels" in json.loads(capsys.readouterr().out)["error"]
    assert run("train", project, "--method", "sparse", "--use", *fast) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "sparse" and found["float"] == pytest.approx(found["trained"])
    assert Path(found["weights"]).is_file()
    sparse = ("--method", "compressed", "--sparsity", "2:4", "--update-freq", "2", "--no-quantise")
    assert run("train", project, *sparse, *fast) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "compressed"
    assert "update_freq: 2" in (project / "compressed.cfg").read_text()
    assert run("export", project, "--trained", "--prefix", tmp_path / "net", "--json") == 0
    kinds = {f["kind"] for f in json.loads(capsys.readouterr().out)["files"]}
    assert kinds == {"float", "compressed", "compressed_deploy"}
    assert run("train", project, "--method", "qat", "--sparsity", "2:4") == 2
    assert "qat takes no sparsity" in capsys.readouterr().err


def test_a_target_that_no_quantised_network_meets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _new(tmp_path, "studio_models:make_chain", "studio_models:counted_metric")
    assert run("auto-calibrate", folder, "--max-loss", "1e-12", "--strategy", "BinarySearch") == 3
    assert "target missed" in capsys.readouterr().out


def test_what_is_typed_wrong_leaves_no_trace(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    assert run("analyse", "digits-resnet", "--metric", "topp", "--project", new) == 2
    assert "no metric 'topp'" in capsys.readouterr().err and not new.exists()
    jobs = _jobs(project)
    assert run("auto-calibrate", project, "--max-loss", "-1") == 2
    assert "max_loss is -1.0; allowed" in capsys.readouterr().err
    assert run("auto-calibrate", project, "--strategy", "Pareto", "--trials", "0") == 2
    assert "pareto_trials is 0; allowed" in capsys.readouterr().err
    assert run("decompose", project, "--rank-rule", "energy", "--energy", "2") == 2
    assert "energy is 2.0; allowed" in capsys.readouterr().err
    assert _jobs(project) == jobs


def _jobs(folder: Path) -> int:
    opened = Project.open(folder)
    job = jobtable.latest(opened.store)
    opened.close()
    return 0 if job is None else job.id


def test_several_projects_and_one_that_is_none(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("calibrate", tmp_path / "nothing", project, "--json") == 2
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert "neither an example nor a project" in first["error"]
    assert second["ok"] and second["metric"] == "top1"
    assert second["float"] == pytest.approx(1.0)  # its labels are the float model's own


def test_code_is_loaded_only_when_it_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ProjectSettings(
        "net",
        SourceSpec("python", "studio_models:make_net"),
        DataSpec("python", "studio_models:make_data", 8, 2),
    )
    Project.create(tmp_path / "p", settings=settings).close()
    assert main(["analyse", str(tmp_path / "p")]) == 2
    assert "--allow-code" in capsys.readouterr().err
    assert run("analyse", tmp_path / "p") == 0


def test_a_project_at_work_is_left_alone(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = Project.open(project)
    job = jobtable.submit(opened.store, "analyse", {}, runner="thread")
    try:
        assert run("calibrate", project) == 4
        assert "a job is at work" in capsys.readouterr().err
    finally:
        jobtable.finish(opened.store, job, "cancelled")
        opened.close()


def test_an_interrupt_keeps_what_was_finished(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.studio.session.Session.evaluate", interrupted)
    assert run("calibrate", project) == 130
    assert "kept" in capsys.readouterr().err

    class Loading(ModuleType):
        __getattr__ = interrupted

    monkeypatch.setitem(sys.modules, "workbench.cli.progress", Loading("progress"))
    assert run("calibrate", project) == 130


def test_wrong_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["auto-calibrate", "p", "--strategy", "Guess"])
    assert left.value.code == 2 and "Recover" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        main(["analyse", "p", "--date", "x.npz"])
    said = capsys.readouterr().err
    assert left.value.code == 2 and "--date x.npz" in said and "--train-data" in said


def test_a_folder_and_other_data_for_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "own"
    model = ("studio_models:make_net", "--metric", "cosine", "--project", folder)
    assert run("calibrate", *model, "--data", "studio_models:make_data") == 0
    batches = make_data()
    np.savez(tmp_path / "data.npz", x=batches[0][0].numpy())
    assert run("calibrate", folder, "--data", tmp_path / "mistyped.npz") == 2
    assert "mistyped.npz: there is no such file" in capsys.readouterr().err
    assert run("calibrate", *model) == 0  # the good data is still there
    training = ("--train-data", tmp_path / "data.npz")
    assert run("calibrate", folder, "--data", tmp_path / "data.npz", *training) == 0
    opened = Project.open(folder)
    assert opened.settings.data.name == opened.settings.train.name == str(tmp_path / "data.npz")
    assert opened.settings.metric == "cosine"  # what is not given stays
    opened.close()
    assert run("calibrate", "another", *model, "--data", "studio_models:make_data") == 2
    assert "--project is one folder for 2 models" in capsys.readouterr().err
