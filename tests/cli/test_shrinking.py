"""The commands that make a model smaller: what they print, write, and end with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workbench.cli import main
from workbench.studio import open_session


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "net"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_ALLOW_CODE", "1")
        session = open_session(
            "studio_models:make_net", "studio_models:make_data", None, folder,
            batch_size=8, threads=1,
        )  # fmt: skip
        session.dispose()
    return folder


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in (*arguments, "--allow-code")])


@pytest.fixture(autouse=True)
def no_code_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_ALLOW_CODE", "0")


def test_searching_channels_and_pruning_them(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.studio.pruning.MEASURED", ())
    few = ("--batches", "1")
    assert run("prune-search", project, "--target", "99", *few, "--sensitivity", "l2") == 3
    words = capsys.readouterr().out
    assert "missed, the best is" in words and "--apply" in words
    assert not (project / "prune.cfg").exists()
    for target in ("1", "0.5", "nan", "inf"):
        assert run("prune-search", project, "--target", target, *few) == 2
        assert "Allowed: above 1" in capsys.readouterr().err

    assert run("prune-search", project, "--target", "1.5", "--apply", "--json", *few) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["reached"] >= 1.5 and found["latency_ms"][1] is None
    assert Path(found["config"]).read_text().count("layer_name") == len(found["ratios"]) > 0

    assert run("prune", project, "--name", "smaller", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["made"] == str(project.parent / "smaller")
    assert made["parameters"] == found["parameters"] and made["macs"] == found["macs"]
    assert made["layers"] == found["removed"]
    assert run("calibrate", made["made"], "--json") == 0
    assert json.loads(capsys.readouterr().out)["layers"] == 3
    assert run("prune", project, "--name", "smaller") == 2
    assert "something named smaller already" in capsys.readouterr().err


def test_what_decomposing_would_do(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("decompose", project, "--dry-run", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["layers"] == {} and "few channels" in found["notes"]["conv1"]
    assert run("decompose", project) == 1  # there is nothing to decompose in it
    assert "no layer would be decomposed" in capsys.readouterr().err
