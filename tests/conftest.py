"""For tests that need a real server and a real browser; one browser serves the whole run."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium: the system's, else Playwright's own; the test is skipped where there is neither."""
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as p:
        found = shutil.which("chromium") or p.chromium.executable_path
        if not Path(found).exists():
            pytest.skip("no Chromium on this machine: make browser")
        # A page in the background must go on painting, or every wait for it is a second longer.
        options = ["--no-sandbox", "--disable-gpu", "--disable-renderer-backgrounding"]
        chromium = p.chromium.launch(executable_path=found, args=options)
        yield chromium
        chromium.close()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def free_port() -> Callable[[], int]:
    return _free_port


@contextlib.contextmanager
def _server_process(
    command: Sequence[str], url: str, log: Path, env: Mapping[str, str] | None = None
) -> Iterator[str]:
    variables = dict(os.environ, OMP_NUM_THREADS="1", **(env or {}))
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, env=variables, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 90
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(url, timeout=2).read()
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no answer from {url}:\n{log.read_text()}")
                time.sleep(0.2)
            yield url
        finally:
            # Some servers outlive a polite request, and their children with them.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def server_process() -> Callable[..., contextlib.AbstractContextManager[str]]:
    """``with server_process(command, url, log, env):`` a server that answers at ``url``."""
    return _server_process
