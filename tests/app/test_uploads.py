"""Model and data files from a browser: the route behind the login, and a project made of them."""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
import onnx
import pytest
import torch
from pictures import make_pictures
from playwright.sync_api import expect
from servers import free_port, running_server
from studio_models import make_data, make_net

from workbench.app import uploads
from workbench.app.new_project import NewProject, external_files, new_project
from workbench.engine.errors import MissingFile, WrongValue
from workbench.studio.errors import CodeNotAllowed, NotWritable
from workbench.studio.factory import Factory
from workbench.studio.image_settings import ImageSettings
from workbench.studio.project import DataSpec, Project, SourceSpec

Answer = TypeVar("Answer")


def alone(story: Coroutine[Any, Any, Answer]) -> Answer:
    """Its result. In a thread: a browser's event loop may run in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, story).result(timeout=60)


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


@pytest.mark.parametrize("step", ["begin", "write", "keep"])
def test_a_full_disk_is_said_and_leaves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """At the first byte, in the middle, and where the file gets its name."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    plain = tempfile.NamedTemporaryFile

    def refuse(*_arguments: Any, **_named: Any) -> Any:
        raise full

    def small(*arguments: Any, **named: Any) -> Any:
        file = plain(*arguments, **named)
        monkeypatch.setattr(file, "write", refuse, raising=False)
        return file

    if step == "begin":
        monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    elif step == "write":
        monkeypatch.setattr(tempfile, "NamedTemporaryFile", small)
    else:
        monkeypatch.setattr(uploads.os, "replace", refuse)
    answer = post_here("model.onnx", b"x" * 500_000)
    assert answer.code == 507
    assert json.loads(answer.body) == {
        "error": "the server cannot keep the file: No space left on device"
    }
    assert not [p for p in home.rglob("*") if p.is_file()]
    monkeypatch.undo()


def post_here(name: str, body: bytes) -> Any:
    """The answer of the upload route of a server in this process."""

    async def send_it() -> Any:
        from bokeh.server.auth_provider import NullAuth
        from tornado.httpclient import AsyncHTTPClient
        from tornado.httpserver import HTTPServer
        from tornado.netutil import bind_sockets
        from tornado.web import Application

        application = Application(uploads.upload_routes())
        application.auth_provider = NullAuth()  # type: ignore[attr-defined]
        sockets = bind_sockets(0, "127.0.0.1")
        server = HTTPServer(application)
        server.add_sockets(sockets)
        try:
            return await AsyncHTTPClient().fetch(
                f"http://127.0.0.1:{sockets[0].getsockname()[1]}/upload",
                method="POST", body=body, headers={"X-Workbench-File": name}, raise_error=False,
            )  # fmt: skip
        finally:
            server.stop()

    return alone(send_it())


def test_a_project_whose_files_find_no_room(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("workbench.app.new_project.shutil.copy2", refuse)
    with pytest.raises(NotWritable, match="the disk is full"):
        new_project("mine", "net.onnx", "data.npz")
    assert not (files.parent / "projects" / "mine").exists()


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
    with pytest.raises(WrongValue, match="^name: “a/b” is not the name"):
        new_project("a/b", "large.onnx", "data.npz")


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


def test_a_folder_of_pictures_stays_where_it_is(files: Path, home: Path, tmp_path: Path) -> None:
    make_pictures(files / "birds", size=8)
    (files / ".hidden").mkdir()
    (files / "link").symlink_to(tmp_path)
    assert uploads.offered_folders() == ["birds"]
    new_project("pictures", "net.onnx", "birds", images=ImageSettings(crop=8))
    opened = Project.open(home / "projects" / "pictures")
    data = opened.settings.data
    assert (data.kind, data.name) == ("folder", str((files / "birds").resolve()))
    assert data.images == ImageSettings(crop=8)
    opened.close()
    for name in ("link", "..", "birds/class0"):
        with pytest.raises(MissingFile):
            new_project("other", "net.onnx", name)


def test_a_folder_of_transformers_is_offered_and_stays_too(files: Path, home: Path) -> None:
    (files / "bert").mkdir()
    (files / "bert" / "config.json").write_text('{"model_type": "bert"}')
    assert uploads.offered_networks() == ["bert"] and uploads.offered_folders() == []
    form = NewProject()
    assert form.model.options == {"net.onnx": "net.onnx", "bert/": "bert"}
    assert "bert" not in form.data.options.values()
    form.model.value = "bert"
    assert "input_ids: any×any, int64" in str(form.wants.object)
    new_project("words", "bert", "data.npz")
    opened = Project.open(home / "projects" / "words")
    assert opened.source == SourceSpec("hf", str((files / "bert").resolve()))
    assert [p.name for p in (opened.folder / "files").iterdir()] == ["data.npz"]
    opened.close()


def test_code_is_a_model_where_it_is_allowed(
    files: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not NewProject().code.column.visible
    with pytest.raises(CodeNotAllowed, match="loading code is off"):
        new_project("coded", Factory("pkg.nets:make"), "data.npz")
    with pytest.raises(CodeNotAllowed, match="loading code is off"):
        new_project("coded", "net.onnx", "pkg.data:load")
    monkeypatch.setenv("WORKBENCH_ALLOW_CODE", "1")
    (files / "net.safetensors").write_bytes(b"kept where it is")
    form = NewProject()
    assert form.code.column.visible
    assert (form.code.model, form.code.data) == (None, "")
    form.code.factory.value, form.code.loader.value = " pkg.nets:make", "pkg.data:load"
    form.code.arguments.value, form.code.weights.value = '{"width": 32}', "net.safetensors"
    model = form.code.model
    assert model is not None and model.title == "make"
    new_project("coded", model, form.code.data)
    opened = Project.open(home / "projects" / "coded")
    weights = str((files / "net.safetensors").resolve())
    assert opened.source == SourceSpec("python", "pkg.nets:make", {"width": 32}, weights)
    assert opened.settings.data == DataSpec("python", "pkg.data:load")
    assert list((opened.folder / "files").iterdir()) == []
    opened.close()


def test_the_form_says_what_the_model_wants(files: Path) -> None:
    make_pictures(files / "birds")
    form = NewProject()
    assert "x: any×3×8×8, float32" in str(form.wants.object)
    assert form.data.options == {"data.npz": "data.npz", "birds/": "birds"}
    assert list(form.train.options.values()) == ["", "data.npz", "birds"] and not form.train.value
    assert not form.pictures.row.visible
    form.train.value = "birds"  # pictures to train with, numbers to measure with
    assert form.pictures.row.visible
    form.train.value = ""
    assert not form.pictures.row.visible
    form.data.value = "birds"
    assert form.pictures.row.visible
    assert form.pictures.settings == ImageSettings(8, 8)
    form.pictures.normalise.value = "none"
    assert form.pictures.settings.mean == ()
    (files / "broken.onnx").write_bytes(b"nothing")
    form.fill()
    form.model.value = "broken.onnx"
    assert "not an ONNX file" in str(form.wants.object)


def test_data_that_does_not_fit_is_refused_before_there_is_a_project(
    files: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_WORKER_IDLE", "20")
    np.savez(files / "turned.npz", x=np.zeros((8, 8, 8, 3), np.float32))
    form = NewProject()
    form.data.value = "turned.npz"
    form.name.value = "mine"
    alone(form._create(None))
    said = str(form.said.object)
    assert "input `x` wants 3×8×8, the data has 8×8×3: transpose?" in said
    assert not (home / "projects" / "mine").exists() and not form.upload.go
    assert not form.create.disabled
    form.data.value, form.train.value = "data.npz", "turned.npz"
    alone(form._create(None))
    said = str(form.said.object)
    assert "input `x` wants 3×8×8, the data has 8×8×3: transpose?" in said
    assert "training data" in said
    (files / "nothing").mkdir()
    form.fill()
    form.train.value = "nothing"
    alone(form._create(None))
    assert "nothing" in str(form.said.object) and "picture" in str(form.said.object)
    assert not (home / "projects" / "mine").exists() and not form.upload.go


@pytest.mark.browser
def test_from_upload_to_layers(
    new_page: Callable[..., Any], workbench_home: Path, tmp_path: Path
) -> None:
    """A person's own model with a folder of pictures: upload, create, and its layers are there."""
    make_files(tmp_path)
    make_pictures(workbench_home / "files" / "birds")
    page = new_page("digits-mobilenet")
    page.get_by_role("button", name="Open a project").click()
    page.locator("input[type=file]").set_input_files([tmp_path / "net.onnx", tmp_path / "data.npz"])
    page.locator(".wb-upload-said", has_text="✓ net").wait_for()
    page.get_by_text("x: any×3×8×8, float32").wait_for()
    page.get_by_label("data", exact=True).click()
    page.get_by_role("menuitem", name="birds/").click()
    page.get_by_label("training data", exact=True).click()
    page.get_by_role("menuitem", name="birds/").click()
    page.get_by_label("cut from the middle (0: all)", exact=True).wait_for()
    page.get_by_label("name", exact=True).fill("my net")
    page.get_by_role("button", name="Create project").click()
    page.wait_for_url("**?project=my+net")
    page.locator(".tabulator-cell[tabulator-field='name']", has_text="conv1").wait_for()
    expect(page.locator(".tabulator-row")).to_have_count(3, timeout=30_000)
    page.get_by_text("birds, 3 classes, 12 samples").first.wait_for()
    with closing(Project.open(workbench_home / "projects" / "my net")) as made:
        assert (made.settings.train.kind, made.settings.data.kind) == ("folder", "folder")
