"""A project with a training in it, written as a job would, without a model."""

from __future__ import annotations

from typing import Any

from workbench.engine.events import CheckpointWritten, ClipsMoved, Evaluated, TrainStep
from workbench.engine.flows.training_checkpoint import checkpoint_path
from workbench.studio import jobtable
from workbench.studio.project import Project
from workbench.studio.reporter import Reporter
from workbench.studio.training_state import KEY


def begin(project: Project, *, jobs: tuple[int, ...] = (), method: str = "qat", **more: Any) -> int:
    """A running training job; its number. ``more``: facts of its own."""
    store = project.store
    job = jobtable.submit(store, "train", {}, runner="thread")
    jobtable.claim(store, job, runner="thread")
    facts = {
        "method": method, "asked": {"method": method}, "jobs": [*jobs, job], "layers": 2,
        "data": "digits, 100 samples", "loss": "cross-entropy with the labels", **more,
    }  # fmt: skip
    store.put(**{KEY: facts})
    return job


def report(project: Project, job: int, first: int, last: int, *, steps: int = 20) -> None:
    """Steps ``first`` to ``last`` of the job: loss 1/step, an evaluation every tenth."""
    for step in range(first, last + 1):
        reporter = Reporter(project.store, job)
        reporter(TrainStep(step, steps, (step - 1) // 10, 1 / step, 0.001))
        reporter(ClipsMoved(step, (("stem", -1.0, 1.0 + step / 10), ("head", 0.0, 2.0))))
        if step % 10 == 0:
            reporter(Evaluated(step, 0.9 + step / 1000, True))
        reporter.flush(final=True)


def keep_checkpoint(project: Project, job: int, step: int) -> None:
    folder = project.checkpoints_of("qat")
    folder.mkdir(parents=True, exist_ok=True)
    path = checkpoint_path(folder, step)
    path.write_bytes(b"x" * 1000)
    reporter = Reporter(project.store, job)
    reporter(CheckpointWritten(step, str(path), 1000))
    reporter.flush(final=True)


def finish(project: Project, job: int, metric: float = 0.975) -> None:
    facts = project.store.get(KEY)
    facts |= {"finished": True, "metric": metric, "steps": 20, "best_step": 20, "seconds": 83.0}
    project.store.put(**{KEY: facts})
    jobtable.finish(project.store, job, "finished")
