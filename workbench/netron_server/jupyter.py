"""The same routes in Jupyter Server, under ``<base url>/compression-workbench/netron/``."""

from __future__ import annotations

from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.utils import url_path_join
from tornado.web import StaticFileHandler, authenticated

from workbench.netron_server.routes import POLICY, make_routes

PREFIX = "compression-workbench"


class Page(JupyterHandler):
    """A page for logged-in users who may read this server's contents."""

    auth_resource = "contents"

    @staticmethod
    def guard(get: Any) -> Any:
        return authenticated(authorized(get))

    @property
    def content_security_policy(self) -> str:
        return POLICY


class Files(Page, StaticFileHandler):
    """Files for logged-in users who may read this server's contents."""

    async def _get(self, path: str, include_body: bool = True) -> None:
        await StaticFileHandler.get(self, path, include_body)

    get = Page.guard(_get)

    async def head(self, path: str) -> None:
        await self.get(path, include_body=False)


def _load_jupyter_server_extension(server: Any) -> None:
    """Called by Jupyter Server when it starts."""
    web = server.web_app
    prefix = url_path_join(web.settings["base_url"], PREFIX, "netron")
    web.add_handlers(".*$", make_routes(prefix, Files, Page))
    server.log.info("Compression Workbench serves graphs under %s/", prefix)
