"""Who is warned that strangers can open the page, and who is not."""

from __future__ import annotations

import logging
import runpy
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from panel.config import config
from servers import ROOT
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.web import Application

from workbench.app import exposure, serve


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("192.168.1.7", False), ("host", False),
    ],
)  # fmt: skip
def test_which_addresses_others_reach(address: str, loopback: bool) -> None:
    assert exposure.is_loopback(address) is loopback


@pytest.fixture
def serve_on() -> Iterator[Any]:
    """``serve_on(address)``: an HTTP server of this thread's loop."""
    loop = IOLoop(make_current=True)
    servers = []

    def start(address: str) -> None:
        server = HTTPServer(Application([]))
        server.listen(0, address, family=socket.AF_INET)
        servers.append(server)

    yield start
    for server in servers:
        server.stop()
    loop.close(all_fds=True)


@pytest.mark.parametrize(
    ("address", "settings", "warned"),
    [
        ("127.0.0.1", {}, False),
        ("0.0.0.0", {}, True),
        ("0.0.0.0", {"basic_auth": "sesame"}, False),
        ("0.0.0.0", {"argv": ["panel", "serve", "--auth-module=mine.py"]}, False),
        ("0.0.0.0", {"trusted": "1"}, False),
    ],
)
def test_the_log_and_the_page_warn_of_an_open_server(
    serve_on: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    address: str,
    settings: dict[str, Any],
    warned: bool,
) -> None:
    serve_on("127.0.0.1")
    serve_on(address)
    monkeypatch.setattr(sys, "argv", settings.get("argv", ["panel", "serve", "apps/"]))
    if "trusted" in settings:
        monkeypatch.setenv(exposure.TRUSTED, settings["trusted"])
    monkeypatch.setattr("bokeh.server.urls.toplevel_patterns", [])
    monkeypatch.setattr("gc.freeze", lambda: None)  # the tests' own objects must still go
    hooks = runpy.run_path(str(ROOT / "apps" / "app_hooks.py"))
    with config.set(basic_auth=settings.get("basic_auth")), caplog.at_level(logging.WARNING):
        hooks["on_server_loaded"](None)
        shown = serve._warnings()
    assert ("other machines (0.0.0.0), and nobody has to log in" in caplog.text) is warned
    assert [("other machines (0.0.0.0)" in pane.object) for pane in shown] == [True] * warned
