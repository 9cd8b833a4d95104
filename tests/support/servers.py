"""Real servers for tests, each on a port of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PORTS_A_PROCESS = 500


def _ports() -> Iterator[int]:
    """Test processes draw from blocks of their own, below the ports the system hands out."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    base = 12_000 + PORTS_A_PROCESS * (int(worker) % 32)
    # Two runs at once on one machine begin at different places of the same block.
    start = 7 * os.getpid()
    for i in range(10 * PORTS_A_PROCESS):
        yield base + (start + i) % PORTS_A_PROCESS


_next_ports = _ports()


def free_port() -> int:
    """A port that nobody listens on, and that no other test process is given."""
    for port in _next_ports:
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port for a test server")


@contextlib.contextmanager
def running_server(
    command: Sequence[str],
    url: str,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
) -> Iterator[str]:
    """``with running_server(command, url, log, env):`` a server that answers at ``url``."""
    variables = dict(os.environ, OMP_NUM_THREADS="1", **(env or {}))
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, env=variables, cwd=cwd, stdout=stream, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 90
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(url, timeout=2).close()
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no answer from {url}:\n{log.read_text()}")
                time.sleep(0.1)
            yield url
        finally:
            # Some servers outlive a polite request, and their children with them.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class RestartableServer(ExitStack):
    """A ``running_server`` that can be stopped and started again at the same address."""

    def __init__(self, serve: Callable[[], AbstractContextManager[str]]) -> None:
        super().__init__()
        self._serve = serve
        self.url = ""
        self.start()

    def start(self) -> None:
        self.url = self.enter_context(self._serve())

    def stop(self) -> None:
        self.close()
