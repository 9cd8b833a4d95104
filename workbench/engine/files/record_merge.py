"""Entries added to a record file that others may be writing, too."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from workbench.engine.files.atomic import make_parents, write_text
from workbench.engine.files.reading import read_text
from workbench.engine.files.record import (
    KVCacheRecord,
    Record,
    format_record,
    parse_record,
)

try:
    import fcntl
except ImportError:  # Windows: writers in other processes are not kept out
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("workbench.engine.files")

_in_this_process = threading.Lock()


class RecordMerger:
    """Adds key-value cache entries to one record file; the rest of the file stays as it is.

    Each ``add`` reads the file, merges and renames the result into place, under a lock that keeps
    out the other threads and, on POSIX systems, processes that add to a record in the same folder.
    An entry that was there is overwritten, with a WARNING.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        # What this object last wrote: if nobody else has since, it need not be parsed again.
        self._text: str | None = None
        self._keys: set[str] = set()

    def reset(self) -> None:
        """Leave an empty record."""
        with _locked(self.path):
            self._write("", set())

    def add(self, entries: Mapping[str, KVCacheRecord]) -> None:
        """Merge ``entries``; ``RuntimeError`` when the file on disk is not a record."""
        with _locked(self.path):
            text = read_text(self.path, what="record file") if self.path.exists() else ""
            if text != self._text:
                self._keys = set(parse_record(text, source=str(self.path)).names())
            old = self._keys & set(entries)
            if not old:
                text += "" if not text or text.endswith("\n") else "\n"
                text += format_record(Record(kv_cache=entries))
            else:
                record = parse_record(text, source=str(self.path))
                for name in sorted(old & set(record.kv_cache)):
                    logger.warning("%s: kv_cache_value of %s is overwritten", self.path, name)
                merged = {**record.kv_cache, **entries}
                text = format_record(Record(record.layers, merged, record.prune, record.order))
            self._write(text, self._keys | set(entries))

    def _write(self, text: str, keys: set[str]) -> None:
        write_text(self.path, text)
        self._text, self._keys = text, keys


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of the folder: the record itself is replaced, and no other file is left."""
    target = Path(os.path.realpath(path))
    make_parents(target)
    with _in_this_process:
        if fcntl is None:
            yield
            return
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
