"""Files are written whole or not at all."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from workbench.engine.errors import NotWritable

logger = logging.getLogger("workbench.engine.files")

FILE_MODE = 0o640
FOLDER_MODE = 0o750


def make_parents(path: Path) -> None:
    """Create the missing folders above ``path`` with mode 0750."""
    missing = []
    folder = path.parent
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for folder in reversed(missing):
        # mkdir's own mode is cut by the umask; chmod afterwards would widen what the user narrowed.
        folder.mkdir(mode=FOLDER_MODE, exist_ok=True)


def ensure_writable(path: str | os.PathLike[str]) -> None:
    """Raise ``NotWritable`` (``PermissionError``) if ``path`` cannot be written; write nothing."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise NotWritable(f"{target} is a folder", hint="Name a file in it.")
    folder = target.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotWritable(
            f"{target} cannot be written: {folder} is a file", hint="Choose another folder."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise NotWritable(
            f"{target} cannot be written: no permission to write in {folder}",
            hint="Choose another folder, or change its permissions.",
        )


@contextmanager
def replace_on_success(
    path: str | os.PathLike[str], *, warn_if_exists: bool = False
) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds.

    The data is on disk (fsync) before the rename, so a reader sees the old file or the new one.
    A symbolic link is followed: its target is replaced. Mode 0640, missing folders 0750. When the
    block raises, ``path`` is as it was and the temporary file is gone.
    """
    target = Path(os.path.realpath(path))
    make_parents(target)
    if warn_if_exists and target.exists():
        logger.warning("%s exists and is overwritten", target)
    handle, name = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.stem[:80]}.", suffix=target.suffix[:40]
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(FILE_MODE)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def write_bytes(path: str | os.PathLike[str], data: bytes, *, warn_if_exists: bool = False) -> None:
    """Write ``data`` to ``path`` atomically."""
    with replace_on_success(path, warn_if_exists=warn_if_exists) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str, *, warn_if_exists: bool = False) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8 with its line ends unchanged."""
    write_bytes(path, text.encode("utf-8"), warn_if_exists=warn_if_exists)


def _sync_folder(folder: Path) -> None:
    # Some file systems refuse fsync on a folder; the rename itself is atomic all the same.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
