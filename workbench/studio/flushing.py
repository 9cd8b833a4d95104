"""``ptq.json``, ``prune.cfg`` and ``log.py`` follow the configuration: before a job, and when it
is quiet.

Writing a thousand layers takes longer than a click may, and the truth is in SQLite anyway.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.engine.errors import WorkbenchError
from workbench.engine.files.prune_config import format_prune_config
from workbench.studio.project import Project, write_whole

if TYPE_CHECKING:
    from workbench.engine.files.config import QuantConfig

log = logging.getLogger("workbench.studio.files")

QUIET_SECONDS = 1.0


@dataclass(frozen=True)
class FileTexts:
    """``config``: of quantisation, None where no layer can be quantised. ``ratios``: layer ->
    channels that shall go; ``aligned``: in multiples of 16.
    """

    revision: int
    config: QuantConfig | None
    ratios: Mapping[str, float]
    aligned: bool
    script: str


class ProjectFiles:
    """Writes the files; ``texts`` says what of one moment."""

    def __init__(self, project: Project, texts: Callable[[], FileTexts | None]) -> None:
        self._project = project
        self._texts = texts
        self._lock = threading.Lock()
        self._written = -1
        self._edited_at = time.monotonic()

    def flush(self) -> None:
        """Write them unless they are up to date. Errors: ``NotWritable``, ``MissingFile``."""
        if self._project.read_only:
            return
        with self._lock:
            found = self._texts()
            if found is None or found.revision == self._written:
                return
            self._project.store.ensure_there()
            if found.config is not None:
                write_whole(self._project.config_path, found.config.to_json())
            if found.ratios:
                text = format_prune_config(found.ratios, ascend_optimized=found.aligned)
                write_whole(self._project.prune_path, text)
            else:
                self._project.prune_path.unlink(missing_ok=True)
            if found.script:
                write_whole(self._project.log_path, found.script)
            self._written = found.revision

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
            threading.Thread(target=self.try_flush, daemon=True).start()

    def try_flush(self) -> None:
        """As ``flush``; what goes wrong is logged."""
        try:
            self.flush()
        except (WorkbenchError, OSError) as error:
            log.warning("ptq.json is not up to date: %s", error)
