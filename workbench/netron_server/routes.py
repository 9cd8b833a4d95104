"""One set of routes over the installed Netron package, for Panel's server and for Jupyter's.

Netron's own page asks a web service where the user is, shows a consent dialog, sends usage figures
and refuses to start half a year after its release. Its index page is therefore patched in memory
(the package itself stays untouched), and a Content-Security-Policy blocks whatever a later version
might try.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import re
from pathlib import Path
from typing import Any

from tornado.web import HTTPError, RequestHandler, authenticated

from workbench.netron_server.registry import resolve

logger = logging.getLogger("workbench.netron_server")

Route = tuple[str, type[RequestHandler], dict[str, Any]]

POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' blob: data:",
        "connect-src 'self' blob: data:",
        "worker-src 'self' blob:",
        "frame-src 'none'",
        "form-action 'none'",
        "frame-ancestors 'self'",
    ]
)

_ASSETS = frozenset({".js", ".json", ".css", ".png", ".ico", ".svg"})
_PATCHES = (
    # "packaged" is false for version 0.0.0, and only a packaged Netron sends usage figures.
    (r'<meta name="version" content="[^"]*">', '<meta name="version" content="0.0.0">'),
    # Without a build date Netron takes today's, so it never believes itself out of date.
    (r'<meta name="date" content="[^"]*">\n?', ""),
    # The bridge runs before any of Netron's own scripts.
    (
        r'(<script [^>]*src="index\.js">)',
        r'<script src="bridge.js"></script>\n\1',
    ),
)


@functools.cache
def netron_folder() -> Path:
    """Where the installed Netron keeps its browser files; ``ImportError`` if there is none."""
    spec = importlib.util.find_spec("netron")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "Showing graphs needs the package netron. Install compression-workbench[app] "
            "or compression-workbench[jupyter]."
        )
    return Path(next(iter(spec.submodule_search_locations)))


@functools.cache
def index_page() -> bytes:
    """Netron's index page, made to stay on this machine and to load our bridge."""
    page = (netron_folder() / "index.html").read_text(encoding="utf-8")
    for pattern, replacement in _PATCHES:
        page, count = re.subn(pattern, replacement, page)
        if count == 0:
            logger.warning("this Netron's index page has no %s; its graphs may not show", pattern)
    return page.encode()


def make_routes(prefix: str, static: Any, request: Any) -> list[Route]:
    """Netron's routes under ``prefix`` (``/netron`` for Panel, base URL + name for Jupyter).

    ``static`` (a ``StaticFileHandler``) and ``request`` are handler classes of the server the
    routes are for; both must refuse a request without login in ``get``.
    """

    class Index(request):
        async def get(self) -> None:
            self.set_header("Content-Type", "text/html; charset=UTF-8")
            self.set_header("Content-Security-Policy", POLICY)
            self.set_header("Cache-Control", "no-cache")
            # Netron asks no consent where this cookie is. It names no Path, because behind a proxy
            # the browser's path is not the one this server sees.
            self.set_header("Set-Cookie", "consent=1; SameSite=Strict")
            self.finish(index_page())

        get = _guarded(request, get)

    class Asset(static):
        def validate_absolute_path(self, root: str, absolute_path: str) -> str | None:
            if Path(absolute_path).suffix not in _ASSETS:
                raise HTTPError(404)
            found: str | None = super().validate_absolute_path(root, absolute_path)
            return found

        def set_extra_headers(self, path: str) -> None:
            self.set_header("Content-Security-Policy", POLICY)
            # A relative proxy or an upgrade of Netron must never mix two versions' modules.
            self.set_header("Cache-Control", "no-cache")

    bridge = str(Path(__file__).parent)
    return [
        (rf"{prefix}/", Index, {}),
        (rf"{prefix}/(bridge\.js)", Asset, {"path": bridge}),
        (rf"{prefix}/data/(.*)", registered_files(static), {"path": bridge}),
        (rf"{prefix}/(.*)", Asset, {"path": str(netron_folder())}),
    ]


def registered_files(static: Any) -> Any:
    """A handler of the files lying directly in a registered folder; ``static`` as above.

    A folder has an id that only this process can mint; a path from a browser is never used.
    """

    class Registered(static):
        def parse_url_path(self, url_path: str) -> str:
            name, _, file = url_path.partition("/")
            path = resolve(name, file)
            if path is None:
                raise HTTPError(404)
            return str(path)

        @classmethod
        def get_absolute_path(cls, root: str, path: str) -> str:
            return os.path.abspath(path)

        def validate_absolute_path(self, root: str, absolute_path: str) -> str | None:
            self.root = os.path.dirname(absolute_path)
            return absolute_path

        # Hashing a model of gigabytes for every request would freeze the server.
        def compute_etag(self) -> str | None:
            return None

        @classmethod
        def get_content_version(cls, abspath: str) -> str:
            return str(os.stat(abspath).st_mtime_ns)

        def get_content_type(self) -> str:
            return "application/octet-stream"

        def set_extra_headers(self, path: str) -> None:
            self.set_header("Cache-Control", "no-store")
            self.set_header("X-Content-Type-Options", "nosniff")

    return Registered


@functools.cache
def panel_routes() -> list[Route]:
    """The routes for ``panel serve``: behind the same login as its pages.

    Append them to ``bokeh.server.urls.toplevel_patterns`` before the server is built, or pass them
    as ``pn.serve(..., extra_patterns=...)``. The server's ``--prefix`` comes on top by itself.
    """
    from bokeh.server.views.auth_request_handler import AuthRequestHandler
    from panel.io.server import AuthenticatedStaticFileHandler

    return make_routes("/netron", AuthenticatedStaticFileHandler, AuthRequestHandler)


def _guarded(request: Any, get: Any) -> Any:
    """Wrap a ``get`` in the login check of the server it is for."""
    guard = getattr(request, "guard", authenticated)
    return guard(get)


def __getattr__(name: str) -> Any:
    # ``panel serve --plugins workbench.netron_server.routes`` looks for ROUTES, and Jupyter, which
    # imports this too, may have no Panel.
    if name == "ROUTES":
        return panel_routes()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
