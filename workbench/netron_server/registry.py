"""Which folders Netron may show: an id stands for a folder, and a browser only ever sends ids.

The kernel of a notebook, the Panel server and the Jupyter server are different processes, so a
registration is one small file under the workspace root, readable by its owner alone. Its name is a
keyed digest of the folder's real path: the same folder always has the same id, and nobody without
the key can make an id up. Nothing here imports the engine: Jupyter's server stays small.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import tempfile
from pathlib import Path
from urllib.parse import quote, urlencode

_ID = re.compile(r"[0-9a-f]{40}")
_EXTERNAL_DATA = (".onnx.data", ".onnx_data")


def home() -> Path:
    """The workspace root: ``WORKBENCH_HOME`` or ``~/.local/share/compression-workbench``."""
    given = os.environ.get("WORKBENCH_HOME")
    return Path(given) if given else Path.home() / ".local" / "share" / "compression-workbench"


def register(folder: str | Path) -> str:
    """Let Netron show the ONNX files directly inside ``folder``; returns the folder's id.

    Raises ``FileNotFoundError`` if ``folder`` is not an existing directory.
    """
    real = Path(folder).resolve()
    if not real.is_dir():
        raise FileNotFoundError(
            f"{folder}: there is no such folder. Export first, then show the graph."
        )
    name = _digest(str(real))
    entry = _entries() / name
    if not entry.is_file():
        _write_private(entry, os.fsencode(real))
    return name


def resolve(name: str, file: str) -> Path | None:
    """The file that ``data/<name>/<file>`` means, or None for everything that was not registered.

    Only ``.onnx`` files and their external data, lying directly in the folder (a link that leads
    out of it is refused), are ever returned.
    """
    if not _ID.fullmatch(name) or not _servable(file):
        return None
    try:
        real = Path(os.fsdecode((_entries() / name).read_bytes()))
    except OSError:
        return None
    # The entry is only believed if its name is the digest of what it says.
    if not hmac.compare_digest(_digest(str(real)), name):
        return None
    path = (real / file).resolve()
    if path.parent != real or not path.is_file():
        return None
    if not file.endswith(".onnx") and not _model_of(path).is_file():
        return None
    return path


def model_url(path: str | Path, *, dark: bool | None = None) -> str:
    """Register the folder of the model at ``path`` and return the relative address that shows it.

    The address (``netron/?url=...``) is relative to whatever the routes are mounted under.
    """
    path = Path(path)
    if not _servable(path.name):
        raise ValueError(f"{path}: only .onnx files are shown, not {path.name!r}.")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file. Export first.")
    # Netron resolves the address against its own page, so it is relative there as well.
    query = {"url": f"data/{register(path.parent)}/{quote(path.name)}"}
    if dark is not None:
        query["theme"] = "dark" if dark else "light"
    return "netron/?" + urlencode(query)


def _servable(file: str) -> bool:
    if not file or file != os.path.basename(file) or "\\" in file or "\0" in file:
        return False
    return not file.startswith(".") and file.endswith((".onnx", *_EXTERNAL_DATA))


def _model_of(data: Path) -> Path:
    for suffix in _EXTERNAL_DATA:
        if data.name.endswith(suffix):
            return data.with_name(data.name.removesuffix(suffix) + ".onnx")
    return data


def _entries() -> Path:
    return home() / "netron"


def _digest(real: str) -> str:
    return hmac.new(_key(), os.fsencode(real), hashlib.sha256).hexdigest()[:40]


def _key() -> bytes:
    path = home() / "netron.key"
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    _write_private(path, secrets.token_bytes(32), keep=True)
    return path.read_bytes()


def _write_private(path: Path, content: bytes, *, keep: bool = False) -> None:
    """Write a file only its owner can read, whole or not at all; ``keep`` an existing one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        if keep:
            # Two processes may start at once: the first link wins and both then read the same key.
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
