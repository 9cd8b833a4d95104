"""What a stranger, a bug or a full disk may do to a project: said in words, nothing half-written.

Hostile model files are in ``tests/engine/graph``, data files in ``test_data`` and
``test_image_folder``, databases and ``project.toml`` in ``test_project``.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from studio_models import make_data, make_net
from torch import Tensor, nn

from workbench.engine.errors import MissingFile, WorkbenchError, WrongValue
from workbench.studio import open_session
from workbench.studio.batches import read_arrays
from workbench.studio.errors import JobFailed, NotWritable
from workbench.studio.project import Project, ProjectSettings, SourceSpec
from workbench.studio.running import describe
from workbench.studio.session import Session
from workbench.studio.shrunk import shrunk_model
from workbench.studio.sources import read_weights

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Named(nn.Module):
    """One convolution, called whatever one likes."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.called = name
        self.add_module(name, nn.Conv2d(3, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.get_submodule(self.called)(x))


@pytest.mark.parametrize(
    "name",
    ["a" * 10_000, "层 ☃ \u202e\"'</script>{x}%s", "two\nlines\tand\x00null"],
    ids=["10,000 characters", "Unicode", "control characters"],
)
def test_names_of_layers_go_through_everything(tmp_path: Path, name: str) -> None:
    """Also: a model of one layer."""
    session = open_session(Named(name), data=[X], project=tmp_path / "p", threads=1)
    session.analyse()
    session.export()
    assert session.layers["name"].tolist() == [name]
    assert session.exports is not None
    assert [line.text for line in session.exports.parity if not line.ok] == []
    deploy = next(file.path for file in session.exports.files if file.kind == "deploy")
    assert name.replace("\0", "") in "".join(
        node.name.replace("\0", "") for node in onnx.load(deploy).graph.node
    )
    session.toggle(name)
    session.toggle(name)
    assert name in json.loads(session.config_json())
    compile(session.script(), "log.py", "exec")
    assert "</script>{x}" not in session.report().read_text(encoding="utf-8")
    session.dispose()


def test_weights_that_are_not_numbers_name_their_layer(tmp_path: Path) -> None:
    net = make_net()
    with torch.no_grad():
        net.get_parameter("fc.weight")[0, 0] = float("nan")
    with pytest.raises(JobFailed, match=r"fc\.weight: holds inf or NaN"):
        open_session(net, data=make_data(), project=tmp_path / "p", threads=1)


def test_a_generator_that_yields_nothing(tmp_path: Path) -> None:
    with pytest.raises(WrongValue, match="yields nothing"):
        open_session(make_net(), data=iter(()), project=tmp_path / "p")
    with pytest.raises(WrongValue, match="evaluation loader yields nothing"):
        open_session(
            make_net(), data={"calibration": [X], "evaluation": []}, project=tmp_path / "p"
        )
    assert not (tmp_path / "p").exists()


def test_memory_that_runs_out_in_torch_is_said_as_such(tmp_path: Path) -> None:
    def metric(model: Any, batches: Any) -> Any:
        return torch.empty(2**48)

    session = open_session(
        make_net(), data=make_data(), metric=metric, project=tmp_path / "p", threads=1
    )
    with pytest.raises(JobFailed, match="not enough memory"):
        session.evaluate()
    session.toggle("fc")
    assert "not enough memory" in describe(torch.OutOfMemoryError("CUDA"), "analyse").summary
    session.dispose()


# -- pickles and bombs ----------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("name", ["bomb.pt", "bomb.pth", "bomb.safetensors"])
def test_pickle_bombs_in_weights(tmp_path: Path, name: str) -> None:
    torch.save({"weight": Bomb()}, tmp_path / name)
    with pytest.raises(WrongValue) as refused:
        read_weights(tmp_path / name)
    assert "weights_only" not in str(refused.value), "no advice to run it all the same"
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WrongValue):
        read_weights(tmp_path / name)


def test_an_npz_that_unfolds_beyond_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((64, 2**20), np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 100_000
    free = type("Memory", (), {"available": 2**25})
    monkeypatch.setattr("workbench.studio.batches.psutil.virtual_memory", lambda: free)
    with pytest.raises(WrongValue, match="unfolds to 64 MB; 32 MB of memory are free"):
        read_arrays(tmp_path / "bomb.npz")


def test_any_damage_to_an_npz_is_an_error_of_ours(tmp_path: Path) -> None:
    np.savez(tmp_path / "good.npz", x=np.arange(30.0), labels=np.arange(30))
    good = (tmp_path / "good.npz").read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        bad = np.frombuffer(good, np.uint8).copy()
        places = random.integers(0, len(bad), random.integers(1, 5))
        bad[places] = random.integers(0, 256, len(places))
        (tmp_path / "bad.npz").write_bytes(bad.tobytes())
        try:
            read_arrays(tmp_path / "bad.npz")
        except WorkbenchError:
            refused += 1
    assert refused > 100


# -- a smaller project from somewhere else --------------------------------------------------------


def shrunk_source(step: str) -> SourceSpec:
    base = {"kind": "zoo", "name": "digits-resnet", "arguments": {}, "weights": ""}
    return SourceSpec(
        "shrunk", "net", {"base": base, "steps": [step]}, weights="weights.safetensors"
    )


DECOMPOSED = (
    "", "[]", "{}", "null", '{"conv1": 3}', '{"conv1": {"rank": 99999999999}}', "[" * 5000,
)  # fmt: skip
PRUNED = (
    "", "{", 'record { key: "gone" value { } }',
    'prune_record { producer { name: "conv1" attr { name: "x" } } }',
)  # fmt: skip


@pytest.mark.parametrize(
    ("step", "file", "text"),
    [("decompose", "shrink/1-decompose.json", text) for text in DECOMPOSED]
    + [("prune", "shrink/1-prune.record.txt", text) for text in PRUNED],
)
def test_hostile_steps_of_a_smaller_project(
    tmp_path: Path, step: str, file: str, text: str
) -> None:
    """Whatever stands in a step's file, it is refused in words, or changes nothing."""
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(text)
    torch.save({"weight": Bomb()}, tmp_path / "weights.safetensors")
    with pytest.raises(WorkbenchError):
        shrunk_model(tmp_path, shrunk_source(step), make_net(), (X,))


def test_weights_of_a_smaller_project_that_are_pickled(tmp_path: Path) -> None:
    source = shrunk_source("decompose")
    source = SourceSpec("shrunk", "net", {**source.arguments, "steps": []}, "weights.pt")
    torch.save({"weight": Bomb()}, tmp_path / "weights.pt")
    with pytest.raises(WrongValue, match="never loaded"):
        shrunk_model(tmp_path, source, make_net(), (X,))


# -- the disk -------------------------------------------------------------------------------------


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """``full(folder)``: no new file can be written below it."""
    plain = tempfile.mkstemp

    def fill(folder: Path) -> None:
        def refuse(*arguments: Any, **named: Any) -> Any:
            if Path(named.get("dir") or "/").is_relative_to(folder):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return plain(*arguments, **named)

        monkeypatch.setattr(tempfile, "mkstemp", refuse)

    return fill


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("measured") / "p"
    session = open_session(make_net(), data=make_data(), project=folder, threads=1)
    session.analyse()
    yield session
    session.dispose()


def contents(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "sqlite" not in path.name}


def test_a_report_on_a_full_disk(
    measured: Session, full: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = measured.project.folder
    before = contents(folder)
    full(folder)
    with pytest.raises(NotWritable, match=r"the disk is full.*Free some space"):
        measured.report()
    full(tmp_path)
    with pytest.raises(NotWritable, match="the disk is full"):
        measured.report(tmp_path / "r.html")
    assert contents(folder) - before <= {folder / "exports"}
    assert not list(tmp_path.iterdir())


def test_an_export_on_a_full_disk(
    measured: Session, full: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = measured.project.folder
    before = contents(folder)
    measured.toggle("fc")
    full(folder)
    with pytest.raises(WorkbenchError, match="disk is full"):
        measured.export()
    assert {path.suffix for path in contents(folder) - before} <= {""}
    assert not list(folder.rglob("*.onnx"))
    monkeypatch.undo()
    measured.export()
    assert measured.exports is not None and len(measured.exports.files) == 4


def test_a_new_project_on_a_full_disk_leaves_nothing(
    full: Callable[[Path], None], tmp_path: Path
) -> None:
    full(tmp_path)
    with pytest.raises(NotWritable, match="the disk is full"):
        Project.create(tmp_path / "p", settings=ProjectSettings("p"))
    assert not (tmp_path / "p").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    with pytest.raises(NotWritable):
        Project.create(tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").exists()


def test_a_job_whose_end_cannot_be_written(tmp_path: Path) -> None:
    """The disk fills up in the middle: no caller waits for ever, and the next job runs."""
    opened: list[Session] = []

    def metric(model: Any, batches: Any) -> float:
        if opened:
            # The connection of the job's own thread: the others can still write.
            connection = opened.pop()._manager.workspace.project.store.connection  # type: ignore[union-attr]
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages}")
            raise ValueError("x" * 400_000)  # details that need more than the last page
        for inputs, _ in batches:
            model(*inputs)
        return 1.0

    session = open_session(
        make_net(), data=make_data(), metric=metric, project=tmp_path / "p", threads=1
    )
    opened.append(session)
    with pytest.raises((JobFailed, NotWritable), match=r"disk|could not write its end"):
        session.evaluate()
    session.evaluate()
    assert session.job is not None and session.job.state == "finished"
    session.dispose()


def test_a_project_that_is_deleted_while_it_is_open(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    session = open_session(make_net(), data=make_data(), project=folder, threads=1)
    shutil.rmtree(folder)
    for action in (
        lambda: session.toggle("fc"), session.analyse, session.report, session.undo
    ):  # fmt: skip
        with pytest.raises(MissingFile, match="deleted, moved or replaced"):
            action()
    session.poll()
    assert not folder.exists(), "nothing of it comes back"
    Project.create(folder).close()
    with pytest.raises(MissingFile, match="replaced"):
        session.toggle("fc")
    session.dispose()
