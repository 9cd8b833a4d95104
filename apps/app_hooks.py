"""Routes beside the page: Netron, downloads, uploads. Panel imports this before it serves."""

import gc

from bokeh.server.urls import toplevel_patterns
from bokeh.settings import settings

import workbench.app.serve  # noqa: F401  # with the server's start, not with the first visit
from workbench.app.downloads import download_routes
from workbench.app.exposure import warn_if_exposed
from workbench.app.uploads import upload_routes
from workbench.netron_server import panel_routes

# Bokeh looks at the signature of each callback that Panel hangs on a model: some 1,300 a page.
settings.perform_error_diagnostics = False

toplevel_patterns.extend([*panel_routes(), *download_routes(), *upload_routes()])


def on_server_loaded(server_context: object) -> None:
    warn_if_exposed()
    # Bokeh collects all garbage for every page that was closed. Most of what there is to look
    # through are the imports, which never go: 0.3 s in which the server answers nobody.
    gc.collect()
    gc.freeze()
