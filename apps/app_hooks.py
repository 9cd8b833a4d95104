"""Routes beside the page: Netron and downloads. Panel imports this before it builds the server."""

from bokeh.server.urls import toplevel_patterns

from workbench.app.downloads import download_routes
from workbench.netron_server import panel_routes

toplevel_patterns.extend([*panel_routes(), *download_routes()])
