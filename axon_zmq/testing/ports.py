"""TCP ports for daemons that tests start."""

from __future__ import annotations

import secrets
import socket


def free_port() -> int:
    """A free port of 127.0.0.1, outside the range of ports that the kernel gives to outgoing connections.

    Within that range, a client that tries to connect while the server is down may get the same port as its own source
    port. It is then connected to itself, and the server cannot bind the port.
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
