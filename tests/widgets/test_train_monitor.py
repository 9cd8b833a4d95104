from __future__ import annotations

from collections.abc import Callable

import training_project as training

from workbench.studio import jobtable
from workbench.studio.session import Session
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
