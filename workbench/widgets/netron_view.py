"""Netron in a cell: an exported graph, linked with the session's layers."""

from __future__ import annotations

import contextlib
import html
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from workbench import netron_server
from workbench.charts.sensitivity import bar_states
from workbench.charts.text import _
from workbench.charts.theme import palette
from workbench.netron_server import model_url
from workbench.widgets import ground
from workbench.widgets.polling import clock
from workbench.widgets.view import check_session

if TYPE_CHECKING:
    from workbench.studio.session import Session

logger = logging.getLogger("workbench.widgets")


class NetronView(anywidget.AnyWidget):
    """The graph of an ONNX file, or of a session's newest export of one ``kind``.

    Selecting a node sets ``selected`` (node name) and ``layer`` (the layer it belongs to, "" if
    none); setting either selects the node. Its title's colour tells the layer's state.
    """

    _esm = ground.SCRIPT.read_text() + (
        Path(netron_server.__file__).with_name("viewer.js").read_text()
    )

    url = traitlets.Unicode("").tag(sync=True)
    base = traitlets.Unicode("jupyter").tag(sync=True)
    selected = traitlets.Unicode("").tag(sync=True)
    colors = traitlets.Dict().tag(sync=True)
    dark = traitlets.Bool(False).tag(sync=True)
    follow = traitlets.Bool(False).tag(sync=True)
    note = traitlets.Unicode("").tag(sync=True)
    height = traitlets.Unicode("480px").tag(sync=True)
    status = traitlets.Unicode("empty").tag(sync=True)
    layer = traitlets.Unicode("")

    def __init__(
        self,
        source: Session | str | Path,
        kind: str = "deploy",
        *,
        dark: bool | None = None,
        **kw: Any,
    ) -> None:
        follow = dark is None
        super().__init__(dark=ground.dark() if dark is None else dark, follow=follow, **kw)
        self.session: Session | None = None
        self.kind = kind
        self.disposed = False
        self._watchers: list[Any] = []
        self.observe(lambda _: self._node_chosen(), "selected")
        self.observe(lambda _: self._layer_chosen(), "layer")
        self.observe(lambda _: self._repainted(), "dark")
        if isinstance(source, (str, Path)):
            self.url = model_url(source)
        else:
            check_session(source)
            self.session = source
            for callback, name in ((self._exported, "exports"), (self._coloured, "layers")):
                self._watchers.append(source.param.watch(self._guarded(callback), [name]))
            clock(source).start()
            self._exported()
            self._coloured()

    def _guarded(self, callback: Any) -> Any:
        def run(*_events: Any) -> None:
            try:
                callback()
            except Exception:
                logger.exception("the graph could not follow the session")

        return run

    def _exported(self) -> None:
        assert self.session is not None
        result = self.session.exports
        files = {file.kind: file.path for file in result.files} if result is not None else {}
        path = files.get(self.kind)
        if path is None or not Path(path).is_file():
            self.url = ""
            self.note = _(
                "No {kind} file is exported yet. Export, and its graph appears here."
            ).format(kind=self.kind)
            return
        # The same address with new contents must load again: Netron is told by a changed URL.
        self.url = f"{model_url(path)}&v={Path(path).stat().st_mtime_ns}"

    def _repainted(self) -> None:
        if self.follow:
            ground.heard(self.dark)
        if self.session is not None:
            self._coloured()

    def _coloured(self) -> None:
        assert self.session is not None
        layers = self.session.layers
        colours = palette(self.dark)
        states = bar_states(layers, 0.99)
        measured = [not math.isnan(value) for value in layers["cosine"]]
        self.colors = {
            str(name): getattr(colours, state)
            for name, state, known in zip(layers["name"], states, measured, strict=True)
            if known or state in ("skipped", "worse")
        }

    def _node_chosen(self) -> None:
        self.layer = self._layer_of(self.selected)

    def _layer_chosen(self) -> None:
        if self.layer and self._layer_of(self.selected) != self.layer:
            self.selected = self.layer

    def _layer_of(self, node: str) -> str:
        """The layer a node was made from: nodes around a layer carry its name and a suffix."""
        if self.session is None:
            return node
        names = {str(name) for name in self.session.layers["name"]}
        while node and node not in names:
            cut = max(node.rfind("."), node.rfind("#"), node.rfind("/"))
            node = node[:cut] if cut > 0 else ""
        return node

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget, and for pages without a kernel a sentence in its place."""
        bundle = super()._repr_mimebundle_(**kwargs)
        text = (
            _("The graph is drawn by Netron while the notebook is open.") if self.url else self.note
        )
        if bundle is not None:
            bundle[0]["text/html"] = f"<i>{html.escape(text)}</i>"
        return bundle

    def dispose(self) -> None:
        """Stop following the session and close the frame; safe to call twice."""
        if self.disposed:
            return
        self.disposed = True
        if self.session is not None:
            for watcher in self._watchers:
                with contextlib.suppress(Exception):
                    self.session.param.unwatch(watcher)
            clock(self.session).stop()
        self._watchers.clear()
        self.close()
