"""Netron beside the page: its own files over our routes, same origin, behind the page's login."""

from __future__ import annotations

from typing import Any

from workbench.netron_server.registry import model_url, register, resolve
from workbench.netron_server.routes import make_routes, panel_routes, registered_files

__all__ = ["make_routes", "model_url", "panel_routes", "register", "registered_files", "resolve"]


def __getattr__(name: str) -> Any:
    if name == "ROUTES":
        return panel_routes()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "workbench.netron_server.jupyter"}]
