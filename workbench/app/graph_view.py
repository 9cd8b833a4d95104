"""Netron of the float model and of any export, side by side, linked with chart and table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app.html import ThemedHTML, escape
from workbench.app.i18n import _
from workbench.app.netron_frame import NetronFrame
from workbench.app.style import BESIDE, LEGIBLE, Wrapping
from workbench.app.view import View
from workbench.app.window import EXPORT_TAB, WindowState
from workbench.charts.sensitivity import bar_states
from workbench.charts.theme import palette
from workbench.netron_server import model_url
from workbench.studio.project import Project
from workbench.studio.pruning_state import Shrunk
from workbench.studio.session import Session
from workbench.studio.state import ExportResult

PAIR = ("before", "after")
ORDER = (*PAIR, "float", "trained", "compressed", "fake_quant", "deploy", "qdq")


def graph_files(
    project: Project, exports: ExportResult | None, shrunk: Shrunk | None = None
) -> dict[str, Path]:
    """Graphs that can be shown, by kind; before an export the float model if there is one.

    ``shrunk``: the float models before and after a pruning or a decomposition, if there was one.
    """
    found = {file.kind: Path(file.path) for file in (exports.files if exports else ())}
    if shrunk is not None:
        found |= zip(PAIR, map(Path, shrunk.onnx), strict=True)
    elif "float" not in found:
        for folder in (project.folder, project.exports):
            for path in sorted(folder.glob("*float*.onnx")):
                found.setdefault("float", path)
    return {kind: found[kind] for kind in ORDER if kind in found and found[kind].is_file()}


def pair_titles(shrunk: Shrunk | None) -> dict[str, str]:
    """What the graphs before and after are called."""
    if shrunk is None:
        return {}
    before, after = {
        "prune": (_("before pruning"), _("after pruning")),
        "decompose": (_("before decomposition"), _("after decomposition")),
    }[shrunk.kind]
    return {"before": before, "after": after}


class GraphView(View):
    """Two frames; a node selected in one selects its layer everywhere, and the other way round."""

    def __init__(self, session: Session, window: WindowState) -> None:
        super().__init__(session, window, EXPORT_TAB)
        self.files: dict[str, Path] = {}
        self._shown: dict[str, tuple[str, float]] = {}
        self.left = self._select(_("left"))
        self.right = self._select(_("right"))
        self.frames = [
            NetronFrame(
                self._node, dark=window.dark, label=label, sizing_mode="stretch_width", height=560,
                margin=0,
            )
            for label in (_("Graph on the left"), _("Graph on the right"))
        ]  # fmt: skip
        self.empty = ThemedHTML(
            '<p class="wb-empty">'
            f"{escape(_('The graphs appear here after the first export.'))}</p>",
        )
        self.body = pn.Column(
            Wrapping(
                *(
                    pn.Column(
                        select,
                        frame,
                        sizing_mode="stretch_width",
                        margin=0,
                        styles=LEGIBLE,
                    )
                    for select, frame in zip((self.left, self.right), self.frames, strict=True)
                ),
                sizing_mode="stretch_width",
                margin=0,
                styles={**BESIDE, "gap": "12px"},
            ),
            sizing_mode="stretch_width",
            margin=(14, 0, 0, 0),
        )
        self.watch(session, self.update_files, "exports", "summary", "shrunk", "origin")
        self.watch(session, self.update_colours, "layers")
        self.watch(self.left, self.load, "value")
        self.watch(self.right, self.load, "value")
        self.watch(window, self.update_theme, "dark")
        self.watch(window, self.update_colours, "threshold")
        self.watch(window, self.update_selected, "selected")
        self.update_files()
        self.update_colours()
        self.update_selected()

    def _select(self, label: str) -> Any:
        return pmui.Select(label=label, options={}, width=320, size="small", margin=(0, 0, 6, 0))

    @property
    def shrunk(self) -> Shrunk | None:
        """The last smaller model made here; else how this one was made."""
        found: Shrunk | None = self.session.shrunk or self.session.origin
        return found

    def update_files(self) -> None:
        files = graph_files(self.session.project, self.session.exports, self.shrunk)
        stamps = {kind: (str(path), path.stat().st_mtime) for kind, path in files.items()}
        if stamps == self._shown and self.left.options:
            return
        self._shown = stamps
        self.files = files
        self.body.visible = bool(files)
        self.empty.visible = not files
        titles = pair_titles(self.shrunk)
        options = {titles.get(kind, path.name): kind for kind, path in files.items()}
        kinds = list(files)
        # Of what was made last: an export, or a smaller model.
        made = {kind: stamp for kind, (_path, stamp) in stamps.items()}
        newest = max(made, key=lambda kind: made[kind], default="")
        pair = PAIR if newest in PAIR else ("float", "deploy")
        for select, wanted in zip((self.left, self.right), pair, strict=True):
            fallback = kinds[0 if select is self.left else -1] if kinds else None
            select.param.update(options=options, value=wanted if wanted in files else fallback)
        self.load()

    def load(self) -> None:
        for select, frame in zip((self.left, self.right), self.frames, strict=True):
            path = self.files.get(select.value)
            if path is None:
                frame.src = ""
                continue
            stamp = int(path.stat().st_mtime)
            src = f"{model_url(path, dark=self.window.dark)}&stamp={stamp}"
            if frame.src.split("&stamp=")[0].split("&theme=")[0] != src.split("&theme=")[0] or (
                not frame.src.endswith(f"&stamp={stamp}")
            ):
                frame.param.update(src=src, nodes=0)

    def update_colours(self) -> None:
        layers = self.session.layers
        if not len(layers):
            return
        colours = palette(self.window.dark)
        states = bar_states(layers, self.window.threshold)
        found = {
            str(name): str(getattr(colours, state))
            for name, state in zip(layers["name"], states, strict=True)
        }
        for frame in self.frames:
            frame.colors = found

    def update_theme(self) -> None:
        for frame in self.frames:
            frame.dark = self.window.dark
        self.update_colours()

    def update_selected(self) -> None:
        name = self.window.selected[0] if self.window.selected else ""
        for frame in self.frames:
            frame.selected = name

    def _node(self, node: str) -> None:
        names = set(self.session.layers["name"]) if len(self.session.layers) else set()
        # Roles follow a colon or a hash; a layer's own node has its bare name.
        for name in (node, node.split("#")[0], node.split(":")[0]):
            if name in names:
                self.window.selected = (name,)
                return

    def __panel__(self) -> Any:
        return pn.Column(self.empty, self.body, sizing_mode="stretch_width", margin=0)
