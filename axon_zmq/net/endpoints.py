"""Validation of endpoints before a ZeroMQ socket uses them, so that the error names the setting and the fix."""

from __future__ import annotations

import ipaddress
import os

from axon_zmq.errors import ConfigurationError

MAX_IPC_PATH = 107
"""Maximum bytes of a Unix socket path: `sun_path` of Linux has 108, and a NUL ends the path."""


def check(endpoint: str) -> str:
    """Check an endpoint that a client connects to: `tcp://HOST:PORT` or `ipc://PATH`.

    Raises:
        ConfigurationError: The endpoint is invalid.
    """
    # A NUL ends a path in ZeroMQ, and a line break would end a line of supervisord's configuration.
    if not endpoint.isprintable():
        raise ConfigurationError(f"invalid endpoint {endpoint!r}: it contains a control character")
    if endpoint.startswith("ipc://") and not endpoint.endswith("/"):
        return check_ipc(endpoint)
    if not endpoint.startswith("tcp://"):
        raise ConfigurationError(f"invalid endpoint {endpoint!r}: expected tcp://HOST:PORT or ipc://PATH")
    tcp_address(endpoint)
    return endpoint


def check_frontend(endpoint: str) -> str:
    """Check the endpoint that the daemon listens on: `tcp://127.0.0.1:PORT`, `tcp://localhost:PORT` or `ipc://PATH`.

    Raises:
        ConfigurationError: The endpoint is invalid, or other machines or users could connect to it.
    """
    # "@" makes an abstract Unix socket, which has no file and therefore no permissions.
    if endpoint.startswith("ipc://@"):
        raise ConfigurationError(
            f"endpoint {endpoint!r} is open to all users of this machine: expected ipc://PATH with the path of a file"
        )
    # ZeroMQ takes a path that begins with "*" as a request for a socket in a new temporary directory.
    if endpoint.startswith("ipc://*"):
        raise ConfigurationError(
            f"endpoint {endpoint!r} has no fixed path, so no client could connect: "
            "expected ipc://PATH with the path of a file"
        )
    if check(endpoint).startswith("tcp://") and not is_loopback(tcp_address(endpoint)[0]):
        raise ConfigurationError(
            f"endpoint {endpoint!r} is open to other machines, without encryption or keys: "
            "use tcp://127.0.0.1:PORT, and a tunnel for clients on other machines"
        )
    return endpoint


def tcp_address(endpoint: str) -> tuple[str, int]:
    """Host and port of a `tcp://` endpoint; an IPv6 address keeps its brackets.

    Raises:
        ConfigurationError: The endpoint is not `tcp://HOST:PORT`.
    """
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    is_port = port.isascii() and port.isdigit() and 0 < int(port) < 65536
    if not endpoint.startswith("tcp://") or not host or not is_port:
        raise ConfigurationError(f"invalid endpoint {endpoint!r}: expected tcp://HOST:PORT with a port from 1 to 65535")
    return host, int(port)


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        # Another host name, or "*". A host name never counts as loopback, because its address can change.
        return False


def check_ipc(endpoint: str) -> str:
    """Check the length of an `ipc://` path.

    pyzmq refuses a longer path, too, but its error does not name the setting to change.

    Raises:
        ConfigurationError: The path is too long.
    """
    length = len(os.fsencode(endpoint.removeprefix("ipc://")))
    if length > MAX_IPC_PATH:
        raise ConfigurationError(
            f"the path of endpoint {endpoint!r} has {length} bytes, the limit is {MAX_IPC_PATH}: "
            "set AXON_RUN_DIR or AXON_FRONTEND to a shorter path"
        )
    return endpoint
