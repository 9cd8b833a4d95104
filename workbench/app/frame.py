"""What the browser gets first: an empty page that already loads what the full one needs."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import panel as pn
from panel.io import server as panel_server
from panel.io.resources import LOCAL_DIST
from panel.models.tabulator import DataTabulator
from panel.util.parameters import edit_readonly
from panel_material_ui.template.base import Meta, Page

from workbench.app.i18n import _
from workbench.app.plotly_files import cartesian_address
from workbench.app.style import THEME, page_sx

NAME = "Compression Workbench"
_ACCESS = Path(__file__).with_name("access.js")
_MENDED = [Path(__file__).with_name(f"{name}.js") for name in ("echoes", "known", "tables")]
"""What is put right in Panel's part of the page."""

# Panel's module loader reads every module as text and puts it into a blob, which the browser
# compiles anew at each visit. Nothing here needs it: the browsers we support have import().
# plotly.js is named here, because Panel's extension brings all of it, and style sheets of maps.
_HEAD = """\
{% extends base %}
{% block preamble %}{{ super() }}
<script>
  (() => {
    const load = (url) => import(new URL(url, document.baseURI).href);
    load.addImportMap = () => {};
    Object.defineProperty(window, "importShim", { get: () => load, set: () => {} });
  })();
</script>
<script src="data:text/javascript;base64,{{ access }}"></script>
{% for url in modules %}<link rel="modulepreload" href="{{ url }}">
{% endfor %}
<script src="{{ plotly }}"></script>
{% endblock %}
{% block js_resources %}{{ needed(bokeh_js) }}
<script src="data:text/javascript;base64,{{ mended }}"></script>
{% endblock %}
"""
_UNUSED = re.compile(r'<script[^>]* src="[^"]*/(?:es-module-shims|bokeh-gl)\b[^"]*"></script>\s*')


def _needed(scripts: str) -> str:
    """Without Panel's module loader and Bokeh's WebGL, which nothing here uses."""
    return _UNUSED.sub("", scripts)


def _as_data(script: str) -> str:
    return b64encode(script.encode()).decode()


# Panel looks through all classes of components, and into their folders, for every page that it
# sends: two thirds of the time until the first byte. Ours all have the same scripts and sheets.
_server: Any = panel_server
_find_resources = _server.bundle_resources
_found: dict[tuple[Any, ...], tuple[str, str]] = {}


def _resources(roots: Any, resources: Any) -> Any:
    """What the head of a page loads, as Panel finds it; for ours it is found once."""
    document = pn.state.curdoc
    if document is None or document.template_variables.get("needed") is not _needed:
        return _find_resources(roots, resources)
    # Panel names the sheet of the theme that the last table had.
    themes = tuple(DataTabulator.__css_raw__)
    place = (resources.mode, resources.root_url, pn.state.rel_path, pn.state.base_url, themes)
    if place not in _found:
        js, css = _find_resources(roots, resources)
        _found[place] = (js, css)
    return _found[place]


_server.bundle_resources = _resources


class Frame(Page):
    """The bar and the room under it, both still empty."""

    def __init__(self, dark: bool) -> None:
        super().__init__(
            title="",
            meta=Meta(title=NAME),
            template=_HEAD,
            theme_config=THEME,
            sx=page_sx(dark),
            dark_theme=dark,
            theme_toggle=True,
            busy_indicator=None,
        )
        # Bound to the server's busy flag, the page walks its whole tree of models twice per poll.
        with edit_readonly(self):
            self.busy = False

    def server_doc(self, doc: Any = None, title: str | None = None, location: Any = True) -> Any:
        """As Panel's, and the head names the modules that the page is drawn with.

        Its script for keyboards and screen readers has to see the first part that is drawn.
        """
        # A page that is built for a late websocket alone never had its head rendered, and without
        # this Panel would ask the network for its style sheets.
        document = doc or pn.state.curdoc
        if document is not None and document.session_context is not None:
            place = f"{pn.state.rel_path}/{LOCAL_DIST}" if pn.state.rel_path else LOCAL_DIST
            document.template_variables.setdefault("dist_url", place)
        doc = super().server_doc(doc, title, location)
        bundles = {root.esm for root in doc.roots if getattr(root, "bundle", None) == "url"}
        doc.template_variables["modules"] = sorted(bundles)
        words = {"less": _("Less"), "more": _("More"), "progress": _("Progress")}
        script = f"{_ACCESS.read_text('utf-8').strip()}({json.dumps(words)});"
        doc.template_variables.update(
            access=_as_data(script),
            mended=_as_data("".join(path.read_text("utf-8") for path in _MENDED)),
            plotly=cartesian_address(),
            needed=_needed,
        )
        return doc
