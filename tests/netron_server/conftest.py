"""A small graph, and a page that shows it, served by a real ``panel serve``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from servers import free_port, running_server

APP = """
import os
import panel as pn
from workbench.netron_server import model_url

url = model_url(os.environ["TEST_MODEL"])
pn.pane.HTML(
    f'<iframe id="graph" src="{url}" style="width:900px;height:600px"></iframe>'
).servable()
"""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve convolutions in a row, named like modules, so that the last lies far down the page."""
    weights = [
        helper.make_tensor(f"w{i}", TensorProto.FLOAT, [1, 1, 1, 1], [1.0]) for i in range(12)
    ]
    nodes = [
        helper.make_node("Conv", [f"v{i}", f"w{i}"], [f"v{i + 1}"], name=f"features.{i}.conv")
        for i in range(12)
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1, 4, 4])
        for name in ("v0", "v12")
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    path = tmp_path_factory.mktemp("exports") / "net_deploy_model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


Serve = Callable[..., contextlib.AbstractContextManager[str]]


@pytest.fixture(scope="session")
def panel_serve(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Serve:
    """``with panel_serve("--option", ...) as url:`` a server of its own that shows the model."""

    def serve(*options: str, prefix: str = "") -> contextlib.AbstractContextManager[str]:
        folder = tmp_path_factory.mktemp("panel")
        page = folder / "page.py"
        page.write_text(APP)
        port = free_port()
        env = {"TEST_MODEL": str(model), "WORKBENCH_HOME": str(folder / "home")}
        command = [sys.executable, "-m", "panel", "serve", str(page), "--port", str(port)]
        command += ["--plugins", "workbench.netron_server.routes", *options]
        url = f"http://127.0.0.1:{port}{prefix}/page"
        return running_server(command, url, folder / "server.log", env)

    return serve


@pytest.fixture(scope="session")
def panel_url(panel_serve: Serve) -> Iterator[str]:
    """The page on a server without options, which the tests share."""
    with panel_serve() as url:
        yield url
