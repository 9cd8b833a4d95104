"""Real sessions on real project folders, with layers known without capturing a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sample_layers import layer

from workbench.studio.project import Project
from workbench.studio.session import Session
from workbench.widgets import ground


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(ground, "_heard", None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "project"


@pytest.fixture
def make_session(folder: Path) -> Iterator[Callable[..., Session]]:
    """``make_session(count)``: the last layer cannot be quantised; layer 2 is the worst."""
    opened: list[Session] = []

    def make(count: int = 12, *, measured: bool = True) -> Session:
        layers = [layer(i, eligible=i < count - 1) for i in range(count)]
        project = Project.create(folder, layers=layers)
        if measured:
            rows = [
                (item.name, 1 - (0.2 if i == 2 else 1e-4 * (i + 1) / count), 30.0, 0.99)
                for i, item in enumerate(layers)
                if item.eligible
            ]
            project.store.write_measurements(rows)
        session = Session(project)
        opened.append(session)
        return session

    yield make
    for session in opened:
        session.dispose()


@pytest.fixture
def session(make_session: Callable[..., Session]) -> Session:
    return make_session()


class Points:
    """What a click on a FigureWidget hands to its callback."""

    def __init__(self, *indices: int) -> None:
        self.point_inds = list(indices)


@pytest.fixture
def points() -> type[Points]:
    return Points


def watchers(session: Any) -> int:
    return sum(len(found) for kinds in session.param.watchers.values() for found in kinds.values())


@pytest.fixture
def count_watchers() -> Callable[[Any], int]:
    return watchers
