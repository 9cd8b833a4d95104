from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from studio_samples import make_layers

from workbench.studio import Project, Session


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
