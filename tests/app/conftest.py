"""One real ``panel serve`` for the browser tests of the page; view tests need none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from servers import free_port, running_server
from workers import end_worker


@pytest.fixture(scope="session")
def workbench_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def server(workbench_home: Path) -> Iterator[str]:
    """Address of ``panel serve apps/`` on a free port with an empty workspace."""
    port = free_port()
    command = [sys.executable, "-m", "panel", "serve", "apps/", "--port", str(port)]
    address = f"http://localhost:{port}"
    env = {"WORKBENCH_HOME": str(workbench_home)}
    with running_server(command, f"{address}/netron/", workbench_home / "server.log", env):
        yield address
    for folder in (workbench_home / "projects").glob("*"):
        end_worker(folder)


@pytest.fixture
def new_page(browser: Any, server: str) -> Iterator[Callable[..., Any]]:
    """``new_page(project)`` opens the workbench and waits for its table; its clock may be ahead.

    Requests that leave the machine and script errors fail the test at its end.
    """
    contexts: list[Any] = []
    faults: list[str] = []

    def request(request: Any) -> None:
        if not request.url.startswith((server, server.replace("http", "ws"), "data:", "blob:")):
            faults.append(f"request to {request.url}")

    def open_page(project: str, days_ahead: int = 0, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        contexts.append(context)
        if days_ahead:
            context.clock.install(time=datetime.now() + timedelta(days=days_ahead))
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", request)
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
