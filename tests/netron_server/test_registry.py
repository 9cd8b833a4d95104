from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.netron_server.registry import model_url, register, resolve


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "exports"
    folder.mkdir(parents=True)
    for name in ("net.onnx", "net.onnx.data", "lonely.onnx.data", "record.txt", ".hidden.onnx"):
        (folder / name).write_bytes(name.encode())
    (tmp_path / "run" / "secret.onnx").write_bytes(b"secret")
    (folder / "sub").mkdir()
    (folder / "sub" / "deep.onnx").write_bytes(b"deep")
    return folder


def test_serves_models_and_their_data_only(exports: Path) -> None:
    name = register(exports)
    assert resolve(name, "net.onnx") == exports / "net.onnx"
    assert resolve(name, "net.onnx.data") == exports / "net.onnx.data"
    for refused in ("lonely.onnx.data", "record.txt", ".hidden.onnx", "missing.onnx", ""):
        assert resolve(name, refused) is None


@pytest.mark.parametrize(
    "file",
    [
        "../secret.onnx",
        "..%2fsecret.onnx",
        "sub/deep.onnx",
        "sub/../net.onnx",
        "..\\secret.onnx",
        "net.onnx\0.onnx",
        "/etc/passwd",
        "//net.onnx",
        ".",
        "..",
    ],
)
def test_no_way_out_of_the_folder(exports: Path, file: str) -> None:
    assert resolve(register(exports), file) is None


def test_a_link_out_of_the_folder_is_refused(exports: Path) -> None:
    (exports / "out.onnx").symlink_to(exports.parent / "secret.onnx")
    assert resolve(register(exports), "out.onnx") is None


@pytest.mark.parametrize("name", ["", "..", "0" * 40, "../" * 13 + "x", "g" * 40, "0" * 39 + "\n"])
def test_unknown_ids_are_refused(exports: Path, name: str) -> None:
    register(exports)
    assert resolve(name, "net.onnx") is None


def test_an_entry_is_not_believed_without_the_key(exports: Path, home: Path) -> None:
    name = register(exports)
    (home / "netron" / name).write_bytes(os.fsencode(exports.parent))
    assert resolve(name, "secret.onnx") is None
    forged = home / "netron" / ("a" * 40)
    forged.write_bytes(os.fsencode(exports.parent))
    assert resolve("a" * 40, "secret.onnx") is None


def test_same_folder_same_id_in_another_process(exports: Path, home: Path) -> None:
    code = "import sys; from workbench.netron_server.registry import register;"
    code += "sys.stdout.write(register(sys.argv[1]))"
    env = dict(os.environ, WORKBENCH_HOME=str(home))
    done = subprocess.run(
        [sys.executable, "-c", code, str(exports / ".." / "exports")],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == register(exports)
    assert resolve(done.stdout, "net.onnx") == exports / "net.onnx"


def test_entries_are_private(exports: Path, home: Path) -> None:
    name = register(exports)
    for path in (home / "netron.key", home / "netron" / name):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_names_need_no_luck(tmp_path: Path) -> None:
    folder = tmp_path / "Ünïcode & more?#"
    folder.mkdir()
    (folder / "a b&c#.onnx").write_bytes(b"x")
    url = model_url(folder / "a b&c#.onnx", dark=True)
    assert url.startswith("netron/?url=data%2F")
    assert url.endswith("&theme=dark")
    assert "#" not in url


def test_what_cannot_be_shown_is_said(exports: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.onnx: there is no such file"):
        model_url(exports / "gone.onnx")
    with pytest.raises(ValueError, match=r"record\.txt"):
        model_url(exports / "record.txt")
    with pytest.raises(FileNotFoundError, match="Export first"):
        register(tmp_path / "nowhere")
