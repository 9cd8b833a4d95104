"""Model and data files from a browser: the route behind the login, and a project made of them."""

from __future__ import annotations

import http.client
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import onnx
import pytest
import torch
from servers import free_port, running_server
from studio_models import make_data, make_net

from workbench.app import uploads
from workbench.app.new_project import external_files, new_project
from workbench.engine.errors import MissingFile, WrongValue
from workbench.studio.project import Project


def send(address: str, name: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    connection.request("POST", "/upload", body, {"X-Workbench-File": quote(name), **headers})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.browser
def test_files_arrive_whole_or_not_at_all(server: str, workbench_home: Path) -> None:
    folder = workbench_home / "files"
    big = np.random.default_rng(0).bytes(3_000_000)
    assert send(server, "model.onnx", big) == (200, b'{"name": "model.onnx"}')
    assert (folder / "model.onnx").read_bytes() == big
    assert send(server, "model.onnx", b"x")[1] == b'{"name": "model-2.onnx"}'
    status, text = send(server, "../../evil.onnx", b"x")
    assert status == 200 and b".._.._evil.onnx" not in text
    assert {p.parent for p in folder.rglob("*")} == {folder}
    for name, words in (("run.sh", b"allowed are"), ("", b"allowed are"), ("a.pkl", b".pt2")):
        status, text = send(server, name, b"x")
        assert status == 400 and words in text
    assert send(server, "a.onnx", b"x", Origin="https://elsewhere.example")[0] == 403
    assert send(server, "a.onnx", b"x", Origin=server)[0] == 200
    assert not list(folder.glob(".upload-*"))


@pytest.mark.browser
def test_nothing_is_taken_without_the_login(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "workbench", "serve", "--no-browser", "--port", str(port)]
    command += ["--home", str(tmp_path), "--password", "sesame"]
    with running_server(command, f"http://localhost:{port}/login", tmp_path / "log"):
        assert send(f"http://localhost:{port}", "a.onnx", b"x" * 100)[0] == 403
    assert not (tmp_path / "files").exists()


def test_bounds(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_MAX_UPLOAD_MB", "2")
    assert "at most 2 MB are allowed" in uploads.refusal("a.onnx", 5 << 20)
    assert uploads.refusal("a.onnx", 1 << 20) == ""
    monkeypatch.setattr(uploads, "MOST_FILES", 1)
    (home / "files").mkdir()
    (home / "files" / "b.npz").write_bytes(b"")
    assert "too many files" in uploads.refusal("a.onnx", 1)


@pytest.fixture
def files(home: Path) -> Path:
    folder = home / "files"
    folder.mkdir()
    make_files(folder)
    return folder


def make_files(folder: Path) -> None:
    x, y = (torch.cat(parts) for parts in zip(*make_data(), strict=True))
    np.savez(folder / "data.npz", x=x.numpy(), labels=y.numpy())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            make_net(), (x,), str(folder / "net.onnx"), dynamo=False, input_names=["x"],
            dynamic_axes={"x": {0: "batch"}},
        )  # fmt: skip


def test_a_project_has_copies_of_its_files(files: Path, home: Path) -> None:
    model = onnx.load(files / "net.onnx")
    onnx.save(
        model, files / "large.onnx", save_as_external_data=True, location="large.data",
        size_threshold=0,
    )  # fmt: skip
    assert external_files(files / "large.onnx") == ["large.data"]
    new_project("large", "large.onnx", "data.npz", "top5")
    kept = home / "projects" / "large" / "files"
    assert {p.name for p in kept.iterdir()} == {"large.onnx", "large.data", "data.npz"}
    opened = Project.open(home / "projects" / "large")
    assert opened.settings.metric == "top5" and opened.source.kind == "onnx"
    opened.close()
    with pytest.raises(WrongValue, match="is there already"):
        new_project("large", "large.onnx", "data.npz")


@pytest.mark.parametrize(
    ("name", "model", "data", "error"),
    [
        ("a", "gone.onnx", "data.npz", MissingFile),
        ("a", "net.onnx", "../data.npz", MissingFile),
        ("../a", "net.onnx", "data.npz", WrongValue),
        ("", "net.onnx", "data.npz", WrongValue),
    ],
)
def test_what_cannot_become_a_project(
    files: Path, home: Path, name: str, model: str, data: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        new_project(name, model, data)
    assert not (home / "projects" / "a").exists()


@pytest.mark.browser
def test_from_upload_to_layers(new_page: Callable[..., Any], tmp_path: Path) -> None:
    """A person's own model, in the page: upload, create, and its layers are there."""
    make_files(tmp_path)
    page = new_page("digits-mobilenet")
    page.get_by_role("button", name="Open a project").click()
    page.locator("input[type=file]").set_input_files([tmp_path / "net.onnx", tmp_path / "data.npz"])
    page.locator(".wb-upload-said", has_text="✓ net").wait_for()
    page.get_by_label("name", exact=True).fill("my net")
    page.get_by_role("button", name="Create project").click()
    page.wait_for_url("**?project=my+net")
    page.locator(".tabulator-cell[tabulator-field='name']", has_text="conv1").wait_for()
    assert page.locator(".tabulator-row").count() == 3
