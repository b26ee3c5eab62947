"""Where the daemon listens: endpoints checked before any socket sees them, and the run directory's files."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

from axon_zmq.errors import ConfigurationError

MAX_IPC_PATH = 107
"""Bytes of a unix socket's path: `sun_path` less its closing NUL."""


def check(endpoint: str) -> str:
    """Check an endpoint that a client connects to: `tcp://host:port` or `ipc://path`.

    Raises:
        ConfigurationError: It is no such endpoint.
    """
    if endpoint.startswith("ipc://") and endpoint != "ipc://":
        return check_ipc(endpoint)
    if not endpoint.startswith("tcp://"):
        raise ConfigurationError(f"{endpoint!r} is no endpoint: write tcp://127.0.0.1:5570 or ipc://path")
    tcp_address(endpoint)
    return endpoint


def check_frontend(endpoint: str) -> str:
    """Check the endpoint that the daemon listens on: `tcp://127.0.0.1:5570`, `tcp://localhost:5570` or `ipc://path`.

    Raises:
        ConfigurationError: It is no such endpoint, or one that other machines could reach.
    """
    if endpoint.startswith("ipc://@"):
        raise ConfigurationError(f"{endpoint!r} would be open to all users here: write ipc://path")
    if check(endpoint).startswith("tcp://") and not is_loopback(tcp_address(endpoint)[0]):
        raise ConfigurationError(
            f"{endpoint!r} would be open to other machines, without encryption or keys: "
            "bind 127.0.0.1 and reach it through a tunnel"
        )
    return endpoint


def tcp_address(endpoint: str) -> tuple[str, int]:
    """Host and port of a `tcp://` endpoint; an IPv6 address in its brackets.

    Raises:
        ConfigurationError: It is none.
    """
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    is_port = port.isascii() and port.isdigit() and 0 < int(port) < 65536
    if not endpoint.startswith("tcp://") or not host or not is_port:
        raise ConfigurationError(f"{endpoint!r} is no endpoint with a port: write tcp://127.0.0.1:5570")
    return host, int(port)


def is_loopback(address: str) -> bool:
    """Whether an address is this machine's alone."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False


def check_ipc(endpoint: str) -> str:
    """Check the length of an `ipc://` path, which the kernel would cut or refuse.

    Raises:
        ConfigurationError: The path is too long.
    """
    if len(os.fsencode(endpoint.removeprefix("ipc://"))) > MAX_IPC_PATH:
        raise ConfigurationError(f"{endpoint!r} is over {MAX_IPC_PATH} bytes: set AXON_RUN_DIR to a shorter path")
    return endpoint


def check_folder(frontend: str) -> None:
    """Check that the folder of an `ipc://` frontend is there, for the broker to make its socket in.

    Raises:
        ConfigurationError: It is not, or may not be written to.
    """
    folder = Path(frontend.removeprefix("ipc://")).parent
    if frontend.startswith("ipc://") and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise ConfigurationError(
            f"{frontend!r}: {str(folder)!r} is no folder that is yours to write to: "
            "make it, or set another AXON_FRONTEND"
        )
