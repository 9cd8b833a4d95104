"""A model that code makes, with arguments and weights: from the command line to the script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from studio_models import make_net

from workbench.cli import main
from workbench.engine.errors import MissingFile, WrongType, WrongValue
from workbench.studio import Factory, Project, open_session
from workbench.studio.errors import CodeNotAllowed
from workbench.studio.factory import read_arguments
from workbench.studio.script import _source
from workbench.studio.search_script import open_lines

NET, DATA = "studio_models:make_net", "studio_models:make_data"


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_ALLOW_CODE", "1")


def test_arguments_and_weights_reach_the_model_and_the_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {name: tensor + 1 for name, tensor in make_net(3).state_dict().items()}
    save_file(wanted, tmp_path / "net.safetensors")
    folder, weights = tmp_path / "net", str(tmp_path / "net.safetensors")
    given = ["--data", DATA, "--project", str(folder), "--allow-code"]
    factory = ["--arguments", '{"classes": 3}', "--weights", weights]
    assert main(["calibrate", NET, *factory, *given]) == 0, capsys.readouterr().err

    project = Project.open(folder)
    assert (project.source.arguments, project.source.weights) == ({"classes": 3}, weights)
    imports, lines = _source(project, 1)
    found: dict[str, Any] = {"torch": torch, "Path": Path}
    exec("\n".join([*imports, *lines]), found)
    state = found["model"].state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())
    # The script's search opens the same source again.
    scope: dict[str, Any] = {"out": tmp_path, "open_session": lambda source, *_, **__: source}
    exec("\n".join(open_lines(project, "again")), scope)
    assert scope["session"].spec == project.source
    project.close()
    # Known by what it was made of: no data need be given again.
    open_session(Factory(NET, {"classes": 3}, weights), project=folder, wait=False).dispose()
    for again in (folder, Factory(NET, {"classes": 3}, weights)):
        with pytest.raises(WrongValue, match="seed is 7; the project in .* was made with 0"):
            open_session(again, project=folder, seed=7, wait=False)
        with pytest.raises(WrongValue, match="threads is 0; allowed: 1 to"):
            open_session(again, project=folder, threads=0, wait=False)
        stored = Project.open(folder).settings.threads
        for threads in (stored + 1, None):
            open_session(again, project=folder, threads=threads, wait=False).dispose()
            assert Project.open(folder).settings.threads == stored + 1
        open_session(again, project=folder, threads=stored, wait=False).dispose()
    with pytest.raises(WrongValue):
        open_session(Factory(NET, {"classes": 4}, weights), DATA, project=folder)


def test_what_is_no_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WrongValue, match="is not of the form"):
        open_session(Factory("digits-resnet"), DATA, project=tmp_path / "p")
    with pytest.raises(WrongType, match="a mapping of names"):
        Factory(NET, {"not a name": 1}).spec  # noqa: B018
    with pytest.raises(MissingFile, match="no such file"):
        Factory(NET, weights=tmp_path / "gone.safetensors").spec  # noqa: B018
    monkeypatch.delenv("WORKBENCH_ALLOW_CODE")
    with pytest.raises(CodeNotAllowed):
        open_session(Factory(NET), DATA, project=tmp_path / "p")


def test_arguments_are_a_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_arguments(" ") == {}
    assert read_arguments('{"width": 32}') == {"width": 32}
    for text, words in (("{", "no JSON"), ("[1]", "no JSON object")):
        with pytest.raises(WrongValue, match=words):
            read_arguments(text)
    assert main(["analyse", NET, "--data", DATA, "--arguments", "[1]", "--allow-code"]) == 2
    assert "no JSON object" in capsys.readouterr().err
