"""Every notebook runs from top to bottom, and is kept without outputs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
import warm
from jupyter_client.provisioning import local_provisioner
from nbconvert import HTMLExporter

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("[0-9]*.ipynb"))
SECONDS = 120


def forked(command: list[str], **options: Any) -> warm.Process:
    """What ``jupyter_client.launcher.launch_kernel`` does, in a fork of the warm process."""
    return warm.Process(command[1:], cwd=options["cwd"], env=options["env"])


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel of this very Python, whatever kernels the machine has."""
    monkeypatch.setattr(local_provisioner, "launch_kernel", forked)
    folder = tmp_path / "jupyter" / "kernels" / "workbench-test"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "test", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WORKBENCH_FAST", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return "workbench-test"


def texts(notebook: Any) -> str:
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            found.append(output.get("text", ""))
            found.append(str(output.get("data", {}).get("text/plain", "")))
    return "\n".join(found)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path: Path, kernel: str, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name=kernel,
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [o.text for o in outputs if o.get("name") == "stderr"] == []
    if path.stem == "01_quickstart":
        said = texts(notebook)
        assert said.count("✓") >= 2
        assert "✗" not in said
        assert "LayerTable" in said
        # As JupyterLab saves it, without the state of widgets, it has its pictures all the same.
        notebook.metadata.pop("widgets", None)
        page, _resources = HTMLExporter().from_notebook_node(notebook)
        assert page.count("<title>Chart of the layers</title>") >= 1
        assert "☑" in page and "vnd.jupyter.widget-view" not in page
        assert len(nbformat.writes(notebook)) < 1_000_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_kept_without_outputs(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert "widgets" not in json.loads(path.read_text(encoding="utf-8"))["metadata"]
