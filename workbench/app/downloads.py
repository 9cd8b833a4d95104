"""Downloads of exported files: behind the page's login, from registered folders only."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from workbench.netron_server import register, registered_files

ROUTE = "download"


def download_url(path: str | Path) -> str:
    """Relative address of an exported file; empty when there is no such file."""
    path = Path(path)
    if not path.is_file():
        return ""
    return f"{ROUTE}/{register(path.parent)}/{quote(path.name)}"


@cache
def download_routes() -> list[tuple[str, Any, dict[str, Any]]]:
    """The route for ``bokeh.server.urls.toplevel_patterns``."""
    from panel.io.server import AuthenticatedStaticFileHandler

    class Download(registered_files(AuthenticatedStaticFileHandler)):  # type: ignore[misc]
        def set_extra_headers(self, path: str) -> None:
            super().set_extra_headers(path)
            name = quote(Path(path).name)
            self.set_header("Content-Disposition", f"attachment; filename*=UTF-8''{name}")

    return [(rf"/{ROUTE}/(.*)", Download, {"path": str(Path(__file__).parent)})]
