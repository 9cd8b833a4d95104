"""Files from a browser: streamed to disk behind the page's login, bounded, names made safe."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from workbench.app.i18n import _, preferred
from workbench.app.projects import home
from workbench.charts.text import catalogue, speaking
from workbench.studio.project import safe_name

ROUTE = "upload"
MODELS = (".pt2", ".onnx")
DATA = (".npz",)
WEIGHTS = (".safetensors", ".pt", ".pth")
"""State dicts for a model that code makes; only the first kind can be uploaded."""
EXTERNAL = (".data", ".onnx_data", ".bin")
MOST_FILES = 200


def largest() -> int:
    """Bytes a file may have: ``WORKBENCH_MAX_UPLOAD_MB``, 8 GB without it."""
    given = os.environ.get("WORKBENCH_MAX_UPLOAD_MB", "")
    return (int(given) if given.isdigit() else 8192) << 20


def files_folder() -> Path:
    """Where uploads lie; files put there by hand are offered too."""
    return home() / "files"


def offered(suffixes: Sequence[str]) -> list[str]:
    """Names of the files with these suffixes, the newest first."""
    folder = files_folder()
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.suffix in suffixes and p.is_file()]
    return [p.name for p in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)]


def offered_folders() -> list[str]:
    """Names of the folders beside the uploads, put there by hand, with pictures."""
    return [name for name in _folders() if not _is_network(name)]


def offered_networks() -> list[str]:
    """Names of the folders of ``transformers`` beside the uploads, put there by hand."""
    return [name for name in _folders() if _is_network(name)]


def _folders() -> list[str]:
    folder = files_folder()
    if not folder.is_dir():
        return []
    return sorted(
        p.name for p in folder.iterdir() if p.is_dir() and p.name[:1] != "." and not p.is_symlink()
    )


def _is_network(name: str) -> bool:
    return (files_folder() / name / "config.json").is_file()


def refusal(name: str, size: int) -> str:
    """Why a file is not taken, in words; empty if it is."""
    allowed = (*MODELS, *DATA, *WEIGHTS[:1], *EXTERNAL)
    if not name.lower().endswith(allowed):
        return _("{name}: allowed are {suffixes}").format(
            name=name[:80], suffixes=", ".join(allowed)
        )
    if size > largest():
        return _("{name}: {size} MB; at most {most} MB are allowed").format(
            name=name[:80], size=size >> 20, most=largest() >> 20
        )
    folder = files_folder()
    if folder.is_dir() and sum(1 for _file in folder.iterdir()) >= MOST_FILES:
        return _("there are too many files already; delete some in {folder}").format(folder=folder)
    return ""


@cache
def upload_routes() -> list[tuple[str, Any, dict[str, Any]]]:
    """The route for ``bokeh.server.urls.toplevel_patterns``."""
    from bokeh.server.views.auth_request_handler import AuthRequestHandler
    from tornado.web import stream_request_body

    @stream_request_body
    class Upload(AuthRequestHandler):
        """One file a request; its name is in a header that no other site's page can send."""

        async def prepare(self) -> None:
            self._file: Any = None
            self._failed: OSError | None = None
            await super().prepare()
            with self._speaking():
                self._begin()

        def _speaking(self) -> AbstractContextManager[None]:
            cookies = {name: morsel.value for name, morsel in self.cookies.items()}
            return speaking(catalogue(preferred("", cookies, dict(self.request.headers))))

        def _begin(self) -> None:
            origin = self.request.headers.get("Origin")
            if self.current_user is None or self.request.method != "POST":
                return self._refuse(403, _("not logged in"))
            if origin is not None and urlsplit(origin).netloc != self.request.host:
                return self._refuse(403, _("another site's page"))
            self._name = safe_name(unquote(self.request.headers.get("X-Workbench-File", "")))
            size = int(self.request.headers.get("Content-Length", "0"))
            reason = refusal(self._name, size)
            if reason:
                return self._refuse(400, reason)
            connection: Any = self.request.connection
            connection.set_max_body_size(largest())
            try:
                files_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
                self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115
                    dir=files_folder(), prefix=".upload-", delete=False
                )
            except OSError as error:
                return self._refuse(507, _kept_not(error))
            return None

        def _refuse(self, status: int, reason: str) -> None:
            self.set_status(status)
            self.finish({"error": reason})

        def data_received(self, chunk: bytes) -> None:
            if self._file is None or self._failed is not None:
                return
            try:
                self._file.write(chunk)
            except OSError as error:  # the rest is read and thrown away, so that the page hears why
                self._failed = error

        def post(self) -> None:
            try:
                if self._failed is not None:
                    raise self._failed
                self._file.close()
                target = _unused(files_folder() / self._name)
                os.replace(self._file.name, target)
            except OSError as error:
                self._drop()
                with self._speaking():
                    return self._refuse(507, _kept_not(error))
            self._file = None
            self.finish({"name": target.name})
            return None

        def on_connection_close(self) -> None:
            self._drop()

        def on_finish(self) -> None:
            self._drop()

        def _drop(self) -> None:
            """What did not arrive whole leaves nothing behind."""
            file, self._file = self._file, None
            if file is not None:
                with suppress(OSError):  # what was not written yet cannot be written now either
                    file.close()
                Path(file.name).unlink(missing_ok=True)

    return [(rf"/{ROUTE}", Upload, {})]


def _kept_not(error: OSError) -> str:
    return _("the server cannot keep the file: {reason}").format(
        reason=error.strerror or type(error).__name__
    )


def _unused(path: Path) -> Path:
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return found
