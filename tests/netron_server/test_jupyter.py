"""The same routes in a real Jupyter server, behind its login and under its base URL."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import free_port, running_server

from workbench.netron_server import model_url

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _same_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(home))


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[str]:
    tmp_path = tmp_path_factory.mktemp("jupyter")
    port = free_port()
    # The very file the wheel installs says what to load.
    config = tmp_path / "config" / "jupyter_server_config.d"
    config.mkdir(parents=True)
    shipped = ROOT / "jupyter-config" / "compression_workbench.json"
    (config / shipped.name).write_text(shipped.read_text())
    env = {
        "PYTHONPATH": str(ROOT / "tests" / "support"),
        "WORKBENCH_HOME": str(home),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "JUPYTER_PREFER_ENV_PATH": "0",
    }
    command = [sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root"]
    command += [f"--port={port}", "--ServerApp.base_url=/user/ann/"]
    command += ["--IdentityProvider.token=sesame", f"--ServerApp.root_dir={tmp_path}"]
    base = f"http://127.0.0.1:{port}/user/ann/"
    with running_server(command, base + "login", tmp_path / "server.log", env):
        yield base + "compression-workbench/"


def status(url: str, token: str = "") -> int:
    request = urllib.request.Request(url)
    if token:
        request.add_header("Authorization", f"token {token}")
    try:
        with urllib.request.urlopen(request) as reply:
            return 302 if "/login" in reply.url else int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_behind_jupyters_login(jupyter: str, model: Path) -> None:
    page = model_url(model)
    data = urllib.request.unquote(page.split("url=")[1])  # type: ignore[attr-defined]
    for path in (page, "netron/bridge.js", "netron/view.js", f"netron/{data}"):
        assert status(jupyter + path) in (302, 403), path
        assert status(jupyter + path, "sesame") == 200, path
    request = urllib.request.Request(
        f"{jupyter}netron/{data}", headers={"Authorization": "token sesame"}
    )
    assert urllib.request.urlopen(request).read() == model.read_bytes()
    assert status(f"{jupyter}netron/server.py", "sesame") == 404
    assert status(f"{jupyter}netron/data/{'0' * 40}/{model.name}", "sesame") == 404


@pytest.mark.browser
def test_shows_the_graph(jupyter: str, model: Path, browser: Any) -> None:
    context = browser.new_context()
    page = context.new_page()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(jupyter + model_url(model) + "&token=sesame")
    page.locator('[id="node-name-features.0.conv"]').wait_for(timeout=30000)
    assert page.locator(".graph-node").count() == 12
    here = jupyter.split("/user")[0]
    assert [u for u in requests if not u.startswith((here, "data:", "blob:"))] == []
    context.close()


def test_jupyters_server_needs_no_torch() -> None:
    code = "import sys, json; import workbench.netron_server.jupyter;"
    code += "sys.stdout.write(json.dumps([m for m in ('torch', 'panel') if m in sys.modules]))"
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
