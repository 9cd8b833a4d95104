"""``ptq.json`` and ``log.py`` follow the configuration: before a job, and when it is quiet.

Writing a thousand layers takes longer than a click may, and the truth is in SQLite anyway.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from workbench.engine.errors import WorkbenchError
from workbench.studio.project import Project, write_whole

if TYPE_CHECKING:
    from workbench.engine.files.config import QuantConfig

log = logging.getLogger("workbench.studio.files")

QUIET_SECONDS = 1.0


class ProjectFiles:
    """Writes the two files; ``texts`` gives (revision, configuration, script) of one moment."""

    def __init__(
        self, project: Project, texts: Callable[[], tuple[int, QuantConfig, str] | None]
    ) -> None:
        self._project = project
        self._texts = texts
        self._lock = threading.Lock()
        self._written = -1
        self._edited_at = time.monotonic()

    def flush(self) -> None:
        """Write them unless they are up to date. Errors: ``NotWritable``."""
        if self._project.read_only:
            return
        with self._lock:
            found = self._texts()
            if found is None or found[0] == self._written:
                return
            revision, config, script = found
            write_whole(self._project.config_path, config.to_json())
            write_whole(self._project.log_path, script)
            self._written = revision

    def outdated(self) -> None:
        """What the files say has changed without an edit, for example by a training that ended."""
        self._written = -1
        self.edited()

    def edited(self) -> None:
        self._edited_at = time.monotonic()

    def when_quiet(self, revision: int) -> None:
        """Write them in the background if the last edit is a moment ago."""
        if self._project.read_only or self._written == revision or self._lock.locked():
            return
        if time.monotonic() - self._edited_at > QUIET_SECONDS:
            self._edited_at = time.monotonic()
            threading.Thread(target=self._quietly, daemon=True).start()

    def _quietly(self) -> None:
        try:
            self.flush()
        except (WorkbenchError, OSError) as error:
            log.warning("ptq.json is not up to date: %s", error)
