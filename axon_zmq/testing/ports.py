"""TCP ports for daemons that tests start."""

from __future__ import annotations

import secrets
import socket


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens at the moment.

    Ports that the system assigns to outgoing connections are left out: a client that reconnects again and again to a
    port on which nothing listens may be assigned that same port for its own end, and connect to itself.
    """
    while True:
        port = secrets.randbelow(10_000) + 20_000
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
