"""One Netron page in a frame, linked with the page by messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import param
from panel.custom import JSComponent

from workbench.app.style import VARIABLES


class NetronFrame(JSComponent):
    """Shows ``src`` (from ``netron_server.model_url``); ``on_node`` hears of selected nodes."""

    src = param.String(default="")
    label = param.String(default="")
    dark = param.Boolean(default=False)
    colors = param.Dict(default={})
    selected = param.String(default="")
    nodes = param.Integer(default=0)

    _esm: ClassVar[Path] = Path(__file__).with_name("netron_frame.js")

    def __init__(self, on_node: Callable[[str], None], **params: Any) -> None:
        super().__init__(stylesheets=[VARIABLES], **params)
        self._on_node = on_node

    def _handle_msg(self, msg: Any) -> None:
        if not isinstance(msg, dict):
            return
        if msg.get("type") == "ready":
            self.nodes = int(msg.get("nodes") or 0)
        elif msg.get("type") == "node" and isinstance(msg.get("name"), str):
            self._on_node(msg["name"])
