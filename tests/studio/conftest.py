from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import warm
from studio_samples import make_layers
from workers import end_worker

from workbench.studio import DataSpec, Project, ProjectSettings, Session, SourceSpec, jobs
from workbench.studio.jobs import WorkerManager


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Project]:
    def make(count: int = 20, folder: str = "project") -> Project:
        layers = make_layers(count)
        project = Project.create(
            tmp_path / folder,
            layers=layers,
            float_bytes=4 * sum(layer.parameters for layer in layers),
        )
        project.store.write_measurements(
            [
                (x.name, 1 - 10.0 ** -(1 + i % 5), 30.0, 0.99)
                for i, x in enumerate(layers)
                if x.eligible
            ]
        )
        project.store.put(figures={"metric_name": "top1", "metric_float": 0.98, "metric_all": 0.90})
        return project

    return make


@pytest.fixture
def session(prepared: Callable[..., Project]) -> Session:
    return Session(prepared())


@pytest.fixture
def open_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Session]]:
    """Sessions on one project whose source, data and metric are code in ``studio_models``."""
    here = str(Path(__file__).parents[1] / "support")
    monkeypatch.setenv("WORKBENCH_ALLOW_CODE", "1")
    monkeypatch.setenv("WORKBENCH_WORKER_IDLE", "20")
    monkeypatch.setattr(jobs, "subprocess", warm.subprocess_of_forks())
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    folder = tmp_path / "p"

    def make(metric: str = "", name: str = "studio_models:make_net") -> Session:
        if not folder.exists():
            settings = ProjectSettings(
                "net",
                SourceSpec("python", name),
                DataSpec("python", "studio_models:make_data", 8, 2),
                metric,
            )
            Project.create(folder, settings=settings)
        return Session(Project.open(folder), WorkerManager(folder))

    yield make
    end_worker(folder)
