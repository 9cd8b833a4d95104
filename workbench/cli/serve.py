"""``workbench serve``: the page of ``panel serve apps/`` with defaults for one's own machine."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from contextlib import closing

DEFAULT_PORT = 5006


def serve(
    *,
    port: int | None = None,
    address: str = "127.0.0.1",
    origins: Sequence[str] = (),
    password: str | None = None,
    browser: bool = True,
) -> int:
    """Serve until interrupted. ``port`` None: 5006, or a free one when that is taken.

    An address that other machines reach without a password is warned of.
    """
    if port is not None and not is_free(address, port):
        print(
            f"port {port} of {address} is taken; leave --port out for a free one", file=sys.stderr
        )
        return 2
    if port is None:
        port = DEFAULT_PORT if is_free(address, DEFAULT_PORT) else free_port(address)
    from workbench.app.exposure import TRUSTED, WARNING, is_loopback, open_to

    if open_to([address], login=bool(password)):
        print("warning: " + WARNING.format(address=address, variable=TRUSTED), file=sys.stderr)
    import secrets

    import panel as pn
    from bokeh.server.urls import toplevel_patterns

    from workbench.app.downloads import download_routes
    from workbench.app.serve import workbench_page
    from workbench.app.uploads import upload_routes
    from workbench.netron_server import panel_routes

    toplevel_patterns.extend([*panel_routes(), *download_routes(), *upload_routes()])
    name = "localhost" if is_loopback(address) else address
    print(f"Compression Workbench: http://{name}:{port}/apps", flush=True)
    options = {"basic_auth": password, "cookie_secret": secrets.token_hex(32)} if password else {}
    pn.serve(
        {"apps": workbench_page},
        port=port,
        address=address,
        websocket_origin=[f"{name}:{port}", f"{address}:{port}", *origins],
        show=browser,
        title="Compression Workbench",
        **options,
    )
    return 0


def is_free(address: str, port: int) -> bool:
    with closing(socket.socket(_family(address))) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def free_port(address: str) -> int:
    with closing(socket.socket(_family(address))) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
