"""Every trial of a project, kept in one file so that nothing is ever evaluated twice.

Source: decision 13 (``project=None`` to cache trials).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CACHE_FILE = "search-cache.jsonl"


class TrialCache:
    """Results by kind and key, and scores by key and sample; ``folder`` None: in memory only.

    The file holds one JSON object a line. A line is appended in one write and is on the disk
    before the call returns, so a killed process loses at most what it was just computing. A line
    that is torn is ignored; of two with the same key the later one counts.

    Errors: ``OSError`` when the folder cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.path = None if folder is None else Path(folder) / CACHE_FILE
        self._entries: dict[tuple[str, str], dict[str, Any]] = {}
        self._scores: dict[str, dict[int, float]] = {}
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            self._read(self.path)

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        return self._entries.get((kind, key))

    def put(self, kind: str, key: str, value: Mapping[str, Any]) -> None:
        self._entries[kind, key] = dict(value)
        self._append({"kind": kind, "key": key, **value})

    def scores(self, key: str) -> dict[int, float]:
        """Known scores of a configuration by sample; the caller must not change the mapping."""
        return self._scores.setdefault(key, {})

    def add_scores(self, key: str, scores: Mapping[int, float]) -> None:
        self.scores(key).update(scores)
        self._append(
            {"kind": "scores", "key": key, "at": list(scores), "scores": list(scores.values())}
        )

    def _append(self, entry: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        line = (json.dumps(entry, separators=(",", ":")) + "\n").encode()
        created = not self.path.exists()
        with self.path.open("ab", buffering=0) as file:
            if not created and _is_torn(self.path):
                line = b"\n" + line
            file.write(line)
            os.fsync(file.fileno())
        if created:
            _sync_folder(self.path.parent)

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        for line in path.read_bytes().split(b"\n"):
            try:
                entry = json.loads(line)
                kind, key = str(entry.pop("kind")), str(entry.pop("key"))
                if kind == "scores":
                    self.scores(key).update(
                        zip(map(int, entry["at"]), map(float, entry["scores"]), strict=True)
                    )
                else:
                    self._entries[kind, key] = entry
            except (ValueError, KeyError, TypeError, AttributeError):
                continue


def _is_torn(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
