"""Is this server reached from other machines although nobody has to log in?  Then it says so."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Collection

from panel.config import config
from tornado.ioloop import IOLoop

from workbench.app.i18n import N_, _

log = logging.getLogger("workbench.app.serve")

TRUSTED = "WORKBENCH_TRUSTED"
"""Set by who has a proxy that asks for the login, or a network where everybody may come in."""

WARNING = N_(
    "This server is reached from other machines ({address}), and nobody has to log in: whoever "
    "opens its page can see, change and delete every project. Start it for this machine alone "
    "(--address 127.0.0.1) or with a login (panel serve: --basic-auth and --cookie-secret, "
    "workbench serve: --password). If something in front of it asks for the login, set "
    "{variable}=1."
)
NETWORKS = (socket.AF_INET, socket.AF_INET6)


def is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def open_to(addresses: Collection[str], *, login: bool) -> str:
    """Those of ``addresses`` that other machines reach without a login; empty if there is none."""
    others = sorted(address for address in addresses if not is_loopback(address))
    return "" if login or os.environ.get(TRUSTED) else ", ".join(others)


def listening() -> set[str]:
    """The addresses that this thread's server listens on."""
    found = set()
    for stream, _handler in getattr(IOLoop.current(), "handlers", {}).values():
        if not isinstance(stream, socket.socket) or stream.family not in NETWORKS:
            continue
        if stream.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            found.add(str(stream.getsockname()[0]))
    return found


def login_configured() -> bool:
    """Whether Panel or Bokeh asks for a login; of Bokeh's own module only its option is seen."""
    module = any(part.split("=")[0] == "--auth-module" for part in sys.argv)
    return bool(config.basic_auth or config.oauth_provider or module)


def exposed() -> str:
    """Addresses of the server that runs in this thread, as ``open_to`` has them."""
    return open_to(listening(), login=login_configured())


def banner() -> str:
    """The warning for the page, in its reader's language; empty if there is no need of one."""
    address = exposed()
    return _(WARNING).format(address=address, variable=TRUSTED) if address else ""


def warn_if_exposed() -> None:
    """Write the warning to the log, when the server has begun to listen."""
    address = exposed()
    if address:
        log.warning(WARNING.format(address=address, variable=TRUSTED))
