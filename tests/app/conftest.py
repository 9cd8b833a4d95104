"""One real ``panel serve`` for the browser tests of the page; view tests need none."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import warm
from servers import RestartableServer, free_port, running_server
from workers import end_worker


@pytest.fixture(scope="session")
def workbench_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def panel_server(workbench_home: Path) -> Iterator[RestartableServer]:
    """``panel serve apps/`` for this machine on a free port, with an empty workspace."""
    port = free_port()
    command = [sys.executable, str(Path(warm.__file__).with_name("warm_serve.py"))]
    command += ["serve", "apps/"]
    command += ["--address", "localhost", "--port", str(port)]
    env = {"WORKBENCH_HOME": str(workbench_home), warm.ADDRESS: warm.address()}
    url, log = f"http://localhost:{port}/netron/", workbench_home / "server.log"
    found = RestartableServer(lambda: running_server(command, url, log, env))
    with found:
        yield found
    for folder in (workbench_home / "projects").glob("*"):
        end_worker(folder)


@pytest.fixture(scope="session")
def server(panel_server: RestartableServer) -> str:
    """The address of ``panel_server``."""
    return panel_server.url.removesuffix("/netron/")


@contextlib.contextmanager
def _pages(browser: Any, server: str) -> Iterator[Callable[..., Any]]:
    contexts: list[Any] = []
    faults: list[str] = []

    def request(request: Any) -> None:
        if not request.url.startswith((server, server.replace("http", "ws"), "data:", "blob:")):
            faults.append(f"request to {request.url}")

    def sent(frame: str | bytes) -> None:
        if isinstance(frame, str) and '"type":"object"' in frame:
            faults.append(f"a model was sent back: {frame[:300]}")

    def open_page(project: str, days_ahead: int = 0, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        contexts.append(context)
        if days_ahead:
            context.clock.install(time=datetime.now() + timedelta(days=days_ahead))
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", request)
        page.on("websocket", lambda socket: socket.on("framesent", sent))
        page.on("pageerror", lambda error: faults.append(f"script error: {error}"))
        # The first page of a server imports the app, and a new project starts its worker.
        page.goto(f"{server}/apps?project={project}", timeout=90_000)
        page.locator(".tabulator-row").first.wait_for(timeout=90_000)
        page.locator(".barlayer .point").first.wait_for(state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture
def new_page(browser: Any, server: str) -> Iterator[Callable[..., Any]]:
    """``new_page(project)`` opens the workbench and waits for its table; its clock may be ahead.

    Requests that leave the machine, script errors, and models that are sent back to the server
    fail the test at its end.
    """
    with _pages(browser, server) as open_page:
        yield open_page


@pytest.fixture(scope="module")
def one_page(browser: Any, server: str) -> Iterator[Callable[..., Any]]:
    """As ``new_page``, for a page that the tests of a module share: opening one takes seconds."""
    with _pages(browser, server) as open_page:
        yield open_page
