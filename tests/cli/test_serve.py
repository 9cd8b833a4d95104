"""``workbench serve`` as a process of its own."""

from __future__ import annotations

import http.client
import socket
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from servers import free_port, running_server

from workbench.app.downloads import download_routes
from workbench.app.uploads import upload_routes
from workbench.cli import main
from workbench.netron_server import panel_routes


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> str:  # type: ignore[misc]
    home = tmp_path_factory.mktemp("serve")
    port = free_port()
    command = [sys.executable, "-m", "workbench", "serve", "--no-browser", "--port", str(port)]
    command += ["--home", str(home), "--password", "sesame"]
    with running_server(command, f"http://localhost:{port}/login", home / "log"):
        yield f"localhost:{port}"


def test_page_and_netron_stand_behind_the_login(served: str) -> None:
    """Each route that we add, with what it serves to those who are logged in."""
    paths = ["/apps", "/netron/", "/netron/x/models/m.onnx", "/download/x/m.onnx", "/upload"]
    for route, *_rest in (*panel_routes(), *download_routes(), *upload_routes()):
        name = route.strip("/").split("/")[0]
        assert any(path.strip("/").split("/")[0] == name for path in paths), f"untested: {route}"
    for path in paths:
        for method in ("GET", "HEAD", "POST"):
            connection = http.client.HTTPConnection(served)
            connection.request(method, path)
            answer = connection.getresponse()
            assert answer.status in (302, 401, 403, 405), (method, path)
            assert b"Compression Workbench" not in answer.read()
            connection.close()


@pytest.mark.parametrize(
    ("arguments", "address", "warned"),
    [
        ([], "127.0.0.1", False),
        (["--address", "0.0.0.0"], "0.0.0.0", True),
        (["--address", "0.0.0.0", "--password", "sesame"], "0.0.0.0", False),
        (["--address", "::1"], "::1", False),
    ],
)
def test_loopback_unless_asked_and_then_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    address: str,
    warned: bool,
) -> None:
    started: list[dict[str, Any]] = []
    monkeypatch.setattr("panel.serve", lambda _pages, **options: started.append(options))
    monkeypatch.setattr("bokeh.server.urls.toplevel_patterns", [])
    monkeypatch.setattr("workbench.cli.serve.is_free", lambda _address, _port: True)
    assert main(["serve", "--no-browser", *arguments]) == 0
    assert started[0]["address"] == address
    said = capsys.readouterr().err
    assert ("warning" in said and "nobody has to log in" in said) is warned


def test_netron_is_served_without_a_password(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "workbench", "serve", "--no-browser", "--port", str(port)]
    with running_server(
        command,
        f"http://localhost:{port}/netron/",
        tmp_path / "log",
        {"WORKBENCH_HOME": str(tmp_path)},
    ):
        page = urllib.request.urlopen(f"http://localhost:{port}/apps?project=nothing").read()
        assert b"Compression Workbench" in page
    assert f"http://localhost:{port}/apps" in (tmp_path / "log").read_text()
    assert "warning" not in (tmp_path / "log").read_text().lower()


def test_a_taken_port_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert f"port {port}" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["serve", "--port", "65536"])
    assert "allowed: 1 to 65535" in capsys.readouterr().err
