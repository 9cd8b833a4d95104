"""Downloads of exported files: behind the page's login, from registered folders only."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from workbench.netron_server import register, resolve

ROUTE = "download"


def download_url(path: str | Path) -> str:
    """Relative address of an exported file; empty when there is no such file."""
    path = Path(path)
    if not path.is_file():
        return ""
    return f"{ROUTE}/{register(path.parent)}/{quote(path.name)}"


@cache
def download_routes() -> list[tuple[str, Any, dict[str, Any]]]:
    """The route for ``bokeh.server.urls.toplevel_patterns``.

    A folder has an id that only this server can mint, and ``resolve`` returns nothing but the
    models lying directly in a registered folder; a path from a browser is never used.
    """
    from panel.io.server import AuthenticatedStaticFileHandler
    from tornado.web import HTTPError

    class Download(AuthenticatedStaticFileHandler):
        def parse_url_path(self, url_path: str) -> str:
            name, _, file = url_path.partition("/")
            path = resolve(name, file)
            if path is None:
                raise HTTPError(404)
            return str(path)

        @classmethod
        def get_absolute_path(cls, root: str, path: str) -> str:
            return path

        def validate_absolute_path(self, root: str, absolute_path: str) -> str | None:
            self.root = str(Path(absolute_path).parent)
            return absolute_path

        # Hashing a model of gigabytes for every request would freeze the server.
        def compute_etag(self) -> str | None:
            return None

        @classmethod
        def get_content_version(cls, abspath: str) -> str:
            return str(Path(abspath).stat().st_mtime_ns)

        def get_content_type(self) -> str:
            return "application/octet-stream"

        def set_extra_headers(self, path: str) -> None:
            name = Path(path).name
            self.set_header("Cache-Control", "no-store")
            self.set_header("X-Content-Type-Options", "nosniff")
            self.set_header("Content-Disposition", f"attachment; filename*=UTF-8''{quote(name)}")

    return [(rf"/{ROUTE}/(.*)", Download, {"path": str(Path(__file__).parent)})]
