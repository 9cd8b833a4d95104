"""``workbench serve`` as a process of its own."""

from __future__ import annotations

import http.client
import socket
import sys
import urllib.request
from pathlib import Path

import pytest
from servers import free_port, running_server

from workbench.cli import main
from workbench.cli.serve import is_loopback


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> str:  # type: ignore[misc]
    home = tmp_path_factory.mktemp("serve")
    port = free_port()
    command = [sys.executable, "-m", "workbench", "serve", "--no-browser", "--port", str(port)]
    command += ["--home", str(home), "--password", "sesame"]
    with running_server(command, f"http://localhost:{port}/login", home / "log"):
        yield f"localhost:{port}"


def test_page_and_netron_stand_behind_the_login(served: str) -> None:
    for path in ("/apps", "/netron/"):
        connection = http.client.HTTPConnection(served)
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status in (302, 401, 403), path
        connection.close()


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


@pytest.mark.parametrize(
    ("address", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("host", False)],
)
def test_which_addresses_others_reach(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback
