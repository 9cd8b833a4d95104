"""Run one job to its end, whatever that is, in the thread that calls."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from typing import Any

import torch

from workbench.engine.errors import Cancelled, WorkbenchError
from workbench.engine.events import CancelToken
from workbench.studio import jobtable
from workbench.studio.decomposing import decompose
from workbench.studio.formats import formats, quantize_modules
from workbench.studio.history import remember
from workbench.studio.inspecting import inspect
from workbench.studio.kept_weights import use_weights
from workbench.studio.project import DISK_FULL
from workbench.studio.pruning import prune, prune_search
from workbench.studio.reporter import Heart, Reporter, trim_events
from workbench.studio.searching import search
from workbench.studio.state import ErrorText
from workbench.studio.tasks import Run, Task, analyse, evaluate, export, open_model
from workbench.studio.training import train
from workbench.studio.workspace import Workspace, threads

TASKS: dict[str, Task] = {
    "open": open_model,
    "analyse": analyse,
    "inspect": inspect,
    "search": search,
    "prune_search": prune_search,
    "prune": prune,
    "decompose": decompose,
    "train": train,
    "weights": use_weights,
    "formats": formats,
    "quantize": quantize_modules,
    "evaluate": evaluate,
    "export": export,
}

log = logging.getLogger("workbench.studio.jobs")


def run_job(workspace: Workspace, job: int, kind: str, args: Mapping[str, Any]) -> None:
    """Run a claimed job; its end, good or bad, is written to the store."""
    store = workspace.project.store
    cancel = CancelToken()
    reporter = Reporter(store, job)
    state, error = "finished", None
    with Heart(store, job, cancel, reporter):
        try:
            with workspace.lock:
                workspace.follow_settings()
                with threads(workspace.project.settings.threads):
                    TASKS[kind](Run(workspace, job, args, reporter, cancel))
        except Cancelled:
            state = "cancelled"
        except Exception as problem:  # a job must end in the table, not in a stack trace
            state, error = "failed", describe(problem, kind)
            # What the engine explains needs no stack trace on the terminal; the job row keeps it.
            expected = isinstance(problem, WorkbenchError)
            level = logging.INFO if expected else logging.WARNING
            log.log(level, "job %d (%s) failed", job, kind, exc_info=problem)
    try:
        reporter.flush(final=True)
        if state == "finished":
            remember(store, job, kind)
        trim_events(store)
    finally:
        jobtable.finish(store, job, state, error)


def describe(problem: Exception, kind: str) -> ErrorText:
    """An exception in one sentence, what to do next, and the stack trace to fold away."""
    details = "".join(traceback.format_exception(problem))[-20_000:]
    if isinstance(problem, WorkbenchError):
        text = f"{problem.where}: {problem.message}" if problem.where else problem.message
        wrong = isinstance(problem, TypeError | ValueError | OSError)
        return ErrorText(text, problem.hint, details, wrong)
    # On the CPU torch says it in a RuntimeError.
    if isinstance(problem, MemoryError | torch.OutOfMemoryError) or (
        isinstance(problem, RuntimeError) and "allocate memory" in str(problem)
    ):
        return ErrorText(
            "there is not enough memory", "Use fewer or smaller calibration batches.", details
        )
    if isinstance(problem, OSError) and problem.errno in DISK_FULL:
        return ErrorText(
            f"the disk is full ({problem.strerror})",
            f"Free some space and start the {kind} again; nothing half-written is left.",
            details,
        )
    text = f"{type(problem).__name__}: {problem}" if str(problem) else type(problem).__name__
    return ErrorText(
        text[:500],
        f"The {kind} job stopped there; what was finished before is kept. The details show where "
        "it happened.",
        details,
    )
