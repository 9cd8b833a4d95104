"""Open a new project once, so that what does not fit is known before anybody works with it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from workbench.studio.jobs import end_worker
from workbench.studio.opening import open_session
from workbench.studio.state import ErrorText

LOOK_SECONDS = 0.1


def try_project(folder: Path) -> ErrorText | None:
    """Load model and data in the project's worker and run one batch; what went wrong, or None.

    A project that cannot be opened is deleted. Takes as long as loading the model does.
    """
    session = open_session(folder, in_process=False)
    try:
        while session.job is not None and session.job.active:
            time.sleep(LOOK_SECONDS)
            session.poll()
        job = session.job
        if job is not None and job.state != "finished":
            # Else the next project of this name would be taken for this worker's.
            end_worker(folder, session.project.store)
    finally:
        session.dispose()
    if job is None or job.state == "finished":
        return None
    shutil.rmtree(folder, ignore_errors=True)
    return job.error or ErrorText("opening the project was cancelled", "Create it again.")
