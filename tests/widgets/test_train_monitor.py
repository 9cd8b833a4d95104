from __future__ import annotations

from collections.abc import Callable

import numpy as np
import training_project as training

from workbench.studio import jobtable
from workbench.studio.masks import masks_file
from workbench.studio.session import Session
from workbench.studio.training_state import METHODS
from workbench.widgets import TrainMonitor


def test_it_follows_a_training(
    make_session: Callable[..., Session], count_watchers: Callable[[Session], int]
) -> None:
    session = make_session()
    before = count_watchers(session)
    monitor = TrainMonitor(session)
    assert "No training has run yet" in monitor.result.value
    assert (monitor.start.disabled, monitor.stop.disabled, monitor.resume.disabled) == (
        False, True, True,
    )  # fmt: skip
    job = training.begin(session.project)
    training.report(session.project, job, 1, 12)
    training.keep_checkpoint(session.project, job, 12)
    session.poll()
    assert list(monitor.loss.data[0].x) == list(range(1, 13))
    assert list(monitor.metric.data[0].x) == [10]
    assert monitor.layers.value == ("stem", "head")
    assert len(monitor.clips.data) == 4
    assert not monitor.stop.disabled
    monitor.layers.value = ("head",)
    assert len(monitor.clips.data) == 2
    jobtable.finish(session.project.store, job, "cancelled")
    session.poll()
    assert "Resume goes on after step 12" in monitor.result.value
    assert not monitor.resume.disabled
    monitor.resume.click()
    assert "cannot start jobs" in monitor.trouble.value
    training.finish(session.project, training.begin(session.project), metric=0.975)
    session.poll()
    assert "✓ trained" in monitor.result.value
    monitor.dispose()
    assert count_watchers(session) == before


def test_masks_and_weights_of_a_sparse_training(make_session: Callable[..., Session]) -> None:
    session = make_session()
    monitor = TrainMonitor(session)
    assert [value for _, value in monitor.method.options] == list(METHODS)
    assert monitor.masks.layout.display == "none"
    masks = [
        {"layer": "stem", "density": 1.0, "reason": "not ticked"},
        {"layer": "head", "density": 0.5, "reason": ""},
    ]
    job = training.begin(session.project, method="sparse", masks=masks, metric_before=0.31)
    with masks_file(session.project, "sparse").open("wb") as file:
        np.savez(file, before_1=np.ones((2, 4)), after_1=np.eye(2, 4))
    training.report(session.project, job, 1, 12)
    session.poll()
    assert monitor.masked.options == ("head",) and monitor.masks.layout.display == ""
    blank = [value for row in monitor.weight.data[1].z for value in row if value is None]
    assert len(blank) == 6, "zeros are left blank"
    assert "not ticked" in monitor.result.value
    assert monitor.use.disabled
    training.finish(session.project, job)
    session.poll()
    assert not monitor.use.disabled and monitor.back.disabled
    monitor.use.click()
    assert "cannot start jobs" in monitor.trouble.value
    monitor.dispose()
